"""What Flower's own node sends passes the gateway: a signature of its own for every request, and no more headers."""

from __future__ import annotations

from datetime import timedelta

import httpx
from fake_superlink import PULL, FakeSuperLink, ask_raw, behind
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.date import now
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import node_auth_http_interceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from signed_requests import new_key, raw

from server.control.gateway import TAKEN_ALONG

KEY = new_key()


def node_through(gateway, key):
    """Return Flower's own client of a node, whose requests go to the gateway, and the headers it sent."""
    seen = []

    def handle(request):
        seen.append(dict(request.headers))
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        answer = ask_raw(gateway, request.url.raw_path, headers=headers, pieces=[request.content])
        return httpx.Response(answer["status"], content=answer["body"], headers=[(b"content-type", b"a/b")])

    interceptors = [
        RuntimeVersionHttpInterceptor("SuperNode"),
        node_auth_http_interceptor.NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    client = FleetHttpClient("https://gateway", interceptors=interceptors)
    client._client = httpx.Client(transport=httpx.MockTransport(handle))
    return client, seen


def patient_invoker():
    """Return what Flower's node asks again with, without its pauses."""
    invoker = make_simple_http_retry_invoker()
    invoker.wait_function = lambda seconds: None
    return invoker


def test_flowers_node_signs_a_time_of_its_own_for_every_request_and_every_retry():
    told = iter([503, 503, 200, 200])

    async def superlink(scope, receive, send):
        await FakeSuperLink(next(told), b"")(scope, receive, send)

    node, seen = node_through(behind(superlink), KEY)
    invoker = patient_invoker()
    for _ in range(2):
        invoker.invoke(node.PullMessages, PullMessagesRequest())
    assert len({headers["flwr-timestamp"] for headers in seen}) == len(seen) == 4


def test_two_threads_of_a_node_that_sign_in_the_same_microsecond_lose_nothing(monkeypatch):
    superlink = FakeSuperLink(answer=b"")
    node, seen = node_through(behind(superlink), KEY)
    at = now()
    times = iter([at, at, at + timedelta(microseconds=1)])
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: next(times))
    invoker = patient_invoker()
    for _ in range(2):
        invoker.invoke(node.PullMessages, PullMessagesRequest())
    assert (len(seen), len(superlink.seen)) == (3, 2)


def test_all_that_flowers_node_sends_passes_and_no_other_header_of_flowers():
    superlink = FakeSuperLink(answer=b"")
    node, seen = node_through(behind(superlink), KEY)
    node.PullMessages(PullMessagesRequest())
    flowers = {name for name in seen[0] if name.startswith("flwr-")}
    assert flowers == {name for name in TAKEN_ALONG if name.startswith("flwr-")}
    assert flowers <= {name.decode() for name in superlink.seen[0][2]}
    others = raw({"flwr-task-token": "t", "flwr-superexec-signature": "s"})
    assert ask_raw(behind(superlink), PULL.encode(), headers=others)["status"] == 200
    assert not [name for name in superlink.seen[-1][2] if name.startswith(b"flwr-")]
