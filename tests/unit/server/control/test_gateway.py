"""The one public port: what passes, what does not, and what a site sees when the SuperLink is away."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fake_superlink import PULL, Away, FakeSuperLink, ask, ask_raw, behind
from signed_requests import new_key, signed

from server.control.gateway import BODY_LIMIT, FLEET

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.mark.parametrize("name", FLEET)
def test_what_a_node_asks_passes_with_its_body_and_its_answer(name):
    superlink = FakeSuperLink()
    answer = ask(behind(superlink), target=f"/v1/fleet/{name}", content=b"question", headers=PROTOBUF)
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert answer.headers["content-type"] == "application/x-protobuf"
    ((method, path, _, body),) = superlink.seen
    assert (method, path, body) == ("POST", f"/v1/fleet/{name}".encode(), b"question")


def test_the_list_holds_all_that_flowers_node_with_a_key_asks():
    import inspect
    import re

    from flwr.supernode import fleet_http_client

    asked = set(re.findall(r"/v1/fleet/([a-z-]+)", inspect.getsource(fleet_http_client)))
    # A node registers and unregisters itself only where there are no keys.
    assert asked - {"register-node", "unregister-node"} == set(FLEET)


def test_a_nodes_signature_passes_and_other_headers_do_not():
    superlink = FakeSuperLink()
    headers = {
        **PROTOBUF, **signed(new_key()), "authorization": "Bearer x",
        "x-http-method-override": "GET", "x-original-url": "/v1/control/list-runs", "x-forwarded-for": "127.0.0.1",
        "cookie": "a=b", "connection": "keep-alive, flwr-signature",
    }  # fmt: skip
    ask(behind(superlink), content=b"q", headers=headers)
    ((_, _, seen, _),) = superlink.seen
    assert {b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"} <= set(seen)
    foreign = {b"authorization", b"x-http-method-override", b"x-original-url", b"x-forwarded-for", b"cookie"}
    assert foreign & set(seen) == set()
    assert seen[b"host"] == b"superlink:18000"


def test_health_tells_nothing_but_ok_even_while_the_superlink_is_away():
    answer = ask(behind(Away()), "GET", "/health")
    assert (answer.status_code, answer.text) == (200, "ok")
    assert set(answer.headers) == {"content-length", "content-type"}


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/control/list-runs"), ("POST", "/v1/control/register-node"), ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/register-node"), ("POST", "/v1/fleet/unregister-node"), ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet"), ("POST", "/v1/responses"), ("POST", "/health"), ("GET", PULL), ("PUT", PULL),
        ("DELETE", PULL), ("OPTIONS", PULL), ("PATCH", PULL), ("HEAD", PULL), ("GET", "/"), ("GET", "/docs"),
        ("GET", "/openapi.json"), ("GET", "/health/"), ("GET", "/health?x=1"), ("GET", "/healthz"),
    ],
)  # fmt: skip
def test_everything_else_is_not_there(method, target):
    superlink = FakeSuperLink()
    answer = ask(behind(superlink), method, target)
    assert (answer.status_code, answer.content) == (404, b"")
    assert set(answer.headers) == {"content-length"}
    assert superlink.seen == []


CONTROL = b"/v1/control/list-runs"


@pytest.mark.parametrize(
    "target",
    [
        CONTROL, b"/v1/fleet/../control/list-runs", b"/v1/fleet/%2e%2e/control/list-runs",
        b"/v1/fleet/%2E%2E/control/list-runs", b"/v1/fleet/..%2fcontrol%2flist-runs",
        b"/v1/fleet/..;/control/list-runs",
        b"/v1/fleet/.%2e/control/list-runs", b"/v1/fleet//../control/list-runs", b"//v1/control/list-runs",
        b"/v1//control/list-runs", b"/v1/fleet/%252e%252e/control/list-runs", b"/v1/fleet/..\\control\\list-runs",
        b"/v1/fleet/pull-messages/../../control/list-runs", b"/v1/fleet/pull-messages/", b"//v1/fleet/pull-messages",
        b"/v1/fleet//pull-messages", b"/v1/fleet/pull-messages;a=b", b"/v1/fleet/pull-messages%00",
        b"/v1/fleet/pull-messages%0d%0aX-A:%20b", b"/v1/fleet/pull%2dmessages", b"/V1/FLEET/PULL-MESSAGES",
        b"/v1/fleet/pull-messages#/../control", b"https://superlink:18000/v1/control/list-runs",
        b"https://gateway/v1/fleet/pull-messages", b"*", b"", b"v1/fleet/pull-messages",
        b"@superlink/v1/fleet/pull-messages",
        b"/v1/fleet/pull-messages\xff", b"/v1/f\xc3\xa9eet/pull-messages", b"/%76%31/fleet/pull-messages",
        b"/health/../v1/control/list-runs", b"/health%2f..%2fv1%2fcontrol%2flist-runs",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_no_spelling_of_a_path_leads_past_the_list(target, method):
    superlink = FakeSuperLink()
    answer = ask_raw(behind(superlink), target, method=method)
    assert (answer["status"], answer["body"], superlink.seen) == (404, b"", [])


@pytest.mark.parametrize("query", [b"x=1", b"/../control/list-runs", b"%2e%2e"])
def test_a_query_is_refused(query):
    superlink = FakeSuperLink()
    assert ask_raw(behind(superlink), PULL.encode(), query=query)["status"] == 404
    assert superlink.seen == []


@pytest.mark.parametrize(
    "header",
    [b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url", b"x-forwarded-prefix"],
)
def test_no_header_turns_a_refused_request_into_another(header):
    superlink = FakeSuperLink()
    assert ask_raw(behind(superlink), CONTROL, headers=[(header, PULL.encode())])["status"] == 404
    assert ask_raw(behind(superlink), PULL.encode(), method="GET", headers=[(header, b"POST")])["status"] == 404
    assert superlink.seen == []


def test_a_websocket_gets_no_answer():
    sent = []

    async def send(event):
        sent.append(event)

    asyncio.run(behind(FakeSuperLink())({"type": "websocket", "raw_path": PULL.encode()}, None, send))
    assert sent == []


def test_a_superlink_that_is_away_is_told_as_such_and_never_as_an_error():
    answer = ask(behind(Away()), content=b"q")
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (503, b"", "5")


def test_flowers_node_asks_again_after_that_answer():
    from flwr.supercore.retry.http_retry import _RETRYABLE_STATUS_CODES

    assert 503 in _RETRYABLE_STATUS_CODES


@pytest.mark.parametrize("status", [401, 403, 409, 500])
def test_a_refusal_of_the_superlink_reaches_the_node_as_it_is(status):
    answer = ask(behind(FakeSuperLink(status, b'{"code": 7}')))
    assert (answer.status_code, answer.content) == (status, b'{"code": 7}')


def test_the_superlinks_own_headers_stay_behind():
    superlink = FakeSuperLink(headers=((b"content-type", b"a/b"), (b"server", b"uvicorn"), (b"set-cookie", b"a=b")))
    assert set(ask(behind(superlink)).headers) == {"content-type"}


def test_an_array_of_flowers_piece_size_passes_within_the_limit():
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert 2 * FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE < BODY_LIMIT
    superlink = FakeSuperLink()
    assert ask(behind(superlink), content=bytes(FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)).status_code == 200
    assert len(superlink.seen[0][3]) == FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE


def test_a_body_that_says_it_is_too_large_is_refused_unread():
    superlink = FakeSuperLink()
    answer = ask_raw(behind(superlink), PULL.encode(), headers=[(b"content-length", str(BODY_LIMIT + 1).encode())])
    assert (answer["status"], superlink.seen) == (413, [])


def test_a_body_that_turns_out_too_large_is_cut_off():
    superlink = FakeSuperLink()
    gateway = behind(superlink, body_limit=10)
    answer = ask_raw(gateway, PULL.encode(), headers=[(b"transfer-encoding", b"chunked")], pieces=[b"123456"] * 3)
    assert (answer["status"], superlink.seen) == (413, [])


@pytest.mark.parametrize("stated", [b"-1", b"1e3", b"abc", b"0x10", b"1, 2"])
def test_a_length_that_is_none_is_refused(stated):
    superlink = FakeSuperLink()
    assert ask_raw(behind(superlink), PULL.encode(), headers=[(b"content-length", stated)])["status"] == 413
    assert superlink.seen == []


def test_a_length_beside_a_body_in_pieces_does_not_reach_the_superlink():
    superlink = FakeSuperLink()
    headers = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")]
    assert ask_raw(behind(superlink), PULL.encode(), headers=headers, pieces=[b"12", b"345"])["status"] == 200
    ((_, _, seen, body),) = superlink.seen
    assert (body, b"content-length" in seen) == (b"12345", False)


def test_a_body_that_stops_coming_ends_the_request():
    superlink = FakeSuperLink()
    gateway = behind(superlink, piece_seconds=0.01)

    async def never():
        yield b"begin"
        await asyncio.sleep(30)

    assert ask(gateway, content=never()).status_code == 408
    assert superlink.seen == []


def test_a_site_that_hangs_up_ends_the_request():
    superlink, events = FakeSuperLink(), [{"type": "http.request", "body": b"a", "more_body": True}]
    sent = []

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http", "method": "POST", "raw_path": PULL.encode(), "path": PULL, "query_string": b"", "headers": [],
        "client": None, "scheme": "https", "http_version": "1.1", "root_path": "", "server": None,
    }  # fmt: skip
    asyncio.run(behind(superlink)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert superlink.seen == []


def test_a_large_answer_passes_in_pieces():
    class Pieces(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self):
            for _ in range(50):
                yield bytes(100_000)

        async def aclose(self):
            self.closed = True

    pieces = Pieces()

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            async for _ in request.stream:
                pass
            return httpx.Response(200, headers={"content-length": "5000000"}, stream=pieces)

    answer = ask(behind(Transport()))
    assert len(answer.content) == 5_000_000
    assert answer.headers["content-length"] == "5000000"
    assert pieces.closed


def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one():
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b"half"
            raise httpx.ReadError("gone")

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return httpx.Response(200, stream=Broken())

    with pytest.raises(httpx.ReadError):
        ask(behind(Transport()))


def test_a_refused_target_is_written_down_harmlessly(caplog):
    ask_raw(behind(FakeSuperLink()), b"/x\r\nforged line" + b"y" * 500)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "\n" not in line
    assert len(line) < 300
    assert "198.51.100.7" in line
