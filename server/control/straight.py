"""Flower's SuperLink, straight through its middlewares.

Each of the nine middlewares of the SuperLink is a Starlette ``BaseHTTPMiddleware``, which gives every request a task, a
stream and an event of its own, and a task more for every piece that is read: most of the SuperLink's time with many
sites. The fleet's and the server app's questions and answers are short and whole, so here they are handed on directly,
one call within the other. Everything else, the control plane's streams among it, goes Starlette's way.
"""

from __future__ import annotations

from flwr.superlink.routers.control.middlewares import (
    ControlAuthenticationMiddleware,
    ControlEventLogMiddleware,
    ControlLicenseMiddleware,
    ControlSensitiveResponseMiddleware,
)
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRAIGHT = ("/v1/fleet/", "/v1/runtime/")
"""Where every request and every answer is one whole message."""


CONTROLS = (
    ControlAuthenticationMiddleware,
    ControlEventLogMiddleware,
    ControlLicenseMiddleware,
    ControlSensitiveResponseMiddleware,
)
"""These hand on whatever is not for the control plane as it is."""


def go_straight() -> None:
    """Have requests of ``STRAIGHT`` paths pass all middlewares of this process directly."""
    starlettes = BaseHTTPMiddleware.__call__

    async def called(self: BaseHTTPMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(STRAIGHT):
            await starlettes(self, scope, receive, send)
        elif isinstance(self, CONTROLS):
            await self.app(scope, receive, send)
        else:
            await _straight(self, scope, receive, send)

    setattr(BaseHTTPMiddleware, "__call__", called)  # noqa: B010


async def _straight(middleware: BaseHTTPMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)

    async def call_next(request: Request) -> Response:
        return await _answer(middleware.app, scope, _again(request, receive))

    response = await middleware.dispatch_func(request, call_next)
    await response(scope, receive, send)


def _again(request: Request, receive: Receive) -> Receive:
    """Return what gives the request's body once more, if the middleware has read it; then what comes after it."""
    body: bytes | None = getattr(request, "_body", None)
    if body is None:
        return receive
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """Return the whole answer of what lies within."""
    told: list[Message] = []

    async def keep(message: Message) -> None:
        told.append(message)

    await app(scope, receive, keep)
    if not told or told[0]["type"] != "http.response.start":
        raise RuntimeError("No response returned.")
    response = Response(b"".join(message.get("body", b"") for message in told[1:]), told[0]["status"])
    response.raw_headers = list(told[0]["headers"])
    return response
