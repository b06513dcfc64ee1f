"""Requests pass the SuperLink's middlewares directly, with the answers they would have had (straight.py)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import _get_middleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from server.control.straight import CONTROLS, STRAIGHT, go_straight

STARLETTES = BaseHTTPMiddleware.__call__
WANTED = PullAppMessagesRequest(message_ids=["seven"]).SerializeToString()


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's own way is back after each test."""
    monkeypatch.setattr(BaseHTTPMiddleware, "__call__", STARLETTES)


def messages(request: Request) -> Response:
    assert request.state.protobuf_request.message_ids == ["seven"]
    request.state.protobuf_response = PullAppMessagesResponse()
    return Response(headers={"traceparent": "kept"})


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body(), headers={"x-own": "1"})


async def pieces(request: Request) -> Response:
    return StreamingResponse(iter([b"one ", b"two ", await request.body()]), 201)


async def broken(_: Request) -> Response:
    raise ValueError("told to nobody")


def superlinks_app() -> Starlette:
    """Return an app behind the SuperLink's own middlewares."""
    routes = [
        Route("/v1/runtime/pull-messages", messages, methods=["POST"]),
        Route("/v1/runtime/push-logs", broken, methods=["POST"]),
        Route("/v1/fleet/pull-messages", echo, methods=["POST"]),
        Route("/v1/fleet/echo", echo, methods=["POST"]),
        Route("/v1/fleet/pieces", pieces, methods=["POST"]),
        Route("/v1/control/list-runs", echo, methods=["POST"]),
        Route("/other", echo, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=_get_middleware())


ASKED: list[tuple[str, bytes, str]] = [
    ("/v1/runtime/pull-messages", WANTED, PROTOBUF_MEDIA_TYPE),
    ("/v1/runtime/pull-messages", b"\xff\xff", PROTOBUF_MEDIA_TYPE),
    ("/v1/runtime/pull-messages", WANTED, "application/json"),
    ("/v1/runtime/push-logs", b"", PROTOBUF_MEDIA_TYPE),
    ("/v1/fleet/pull-messages", PullMessagesRequest().SerializeToString(), PROTOBUF_MEDIA_TYPE),
    ("/v1/fleet/echo", b"x" * 200_000, "text/plain"),
    ("/v1/fleet/pieces", b"three", "text/plain"),
    ("/v1/fleet/no-such-thing", b"", PROTOBUF_MEDIA_TYPE),
    ("/v1/control/list-runs", b"", PROTOBUF_MEDIA_TYPE),
    ("/other", b"plain", "text/plain"),
]


def answers() -> list[tuple[int, dict[str, str], bytes]]:
    with TestClient(superlinks_app(), raise_server_exceptions=False) as client:
        got = [client.post(path, content=body, headers={"content-type": kind}) for path, body, kind in ASKED]
    return [(one.status_code, dict(one.headers), one.content) for one in got]


def without_length(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("content-length", "transfer-encoding")}


def test_every_answer_is_the_one_starlettes_way_gives() -> None:
    before = answers()
    go_straight()
    after = answers()
    for asked, (status, headers, body), (status_now, headers_now, body_now) in zip(ASKED, before, after, strict=True):
        assert (status_now, body_now) == (status, body), asked[0]
        assert without_length(headers_now) == without_length(headers), asked[0]
    assert [status for status, _, _ in before] == [200, 400, 415, 500, 401, 200, 201, 404, 503, 200]


def test_a_straight_request_makes_no_task_of_a_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    go_straight()
    monkeypatch.setattr("starlette.middleware.base.create_collapsing_task_group", None)
    with TestClient(superlinks_app()) as client:
        assert client.post("/v1/fleet/echo", content=b"x").content == b"x"
        with pytest.raises(TypeError):
            client.post("/other", content=b"x")


def test_the_control_planes_middlewares_hand_on_what_is_not_theirs_as_it_is() -> None:
    seen: list[Any] = []

    class Within(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            seen.append((request.url.path, await request.body()))
            return await call_next(request)

    middleware = [*(Middleware(control) for control in CONTROLS), Middleware(Within)]
    routes = [Route("/v1/fleet/echo", echo, methods=["POST"])]
    told = []
    for change in (lambda: None, go_straight):
        change()
        with TestClient(Starlette(routes=routes, middleware=middleware)) as client:
            answer = client.post("/v1/fleet/echo", content=b"body")
            told.append((answer.status_code, without_length(dict(answer.headers)), answer.content))
    assert told[0] == told[1]
    assert seen == [("/v1/fleet/echo", b"body")] * 2


def test_an_app_that_answers_nothing_is_an_error() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return None

    async def on(request: Request, call_next: Any) -> Response:
        return await call_next(request)

    go_straight()
    client = TestClient(BaseHTTPMiddleware(silent, dispatch=on))
    with pytest.raises(RuntimeError, match="No response returned"):
        client.post("/v1/fleet/echo")


def test_a_route_that_waits_for_the_other_side_to_go_is_told_so() -> None:
    """A body is given once; what comes after it is the connection's own word."""
    told: list[str] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        told.extend([(await receive())["type"], (await receive())["type"]])
        await PlainTextResponse("done")(scope, receive, send)

    async def reading(request: Request, call_next: Any) -> Response:
        await request.body()
        return await call_next(request)

    async def receive() -> dict[str, Any]:
        return next(words)

    words = iter([{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    go_straight()
    scope = {"type": "http", "method": "POST", "path": STRAIGHT[0] + "x", "headers": [], "query_string": b""}
    anyio.run(BaseHTTPMiddleware(listening, dispatch=reading), scope, receive, send)
    assert told == ["http.request", "http.disconnect"]
    assert sent[-1]["body"] == b"done"
