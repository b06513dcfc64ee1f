"""A SuperLink that remembers what reached it, the gateway before it, and ways to ask that gateway."""

from __future__ import annotations

import asyncio

import httpx

from server.control.gateway import Gateway

PULL = "/v1/fleet/pull-messages"


class FakeSuperLink:
    """An ASGI application that remembers what reached it."""

    def __init__(self, status=200, answer=b"answer", headers=((b"content-type", b"application/x-protobuf"),)):
        self.status, self.answer, self.headers, self.seen = status, answer, headers, []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        self.seen.append((scope["method"], scope["raw_path"], dict(scope["headers"]), body))
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.answer})


class Away(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        raise httpx.ConnectError("refused", request=request)


def behind(upstream, **options):
    transport = upstream if isinstance(upstream, httpx.AsyncBaseTransport) else httpx.ASGITransport(upstream)
    client = httpx.AsyncClient(transport=transport, base_url="https://superlink:18000")
    return Gateway(client, **options)


def ask(gateway, method="POST", target=PULL, **sent):
    """Send one request to the gateway and return its answer."""

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="https://gateway") as client:
            return await client.request(method, target, **sent)

    return asyncio.run(send())


def ask_raw(gateway, target: bytes, *, method="POST", query=b"", headers=(), pieces=(b"",), client=("198.51.100.7", 5)):
    """Send one request whose target is given byte by byte, as a program of an attacker's own would."""
    answer = {"body": b""}
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces[:-1]]
    waiting.append({"type": "http.request", "body": pieces[-1], "more_body": False})

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(event):
        if event["type"] == "http.response.start":
            answer["status"], answer["headers"] = event["status"], dict(event["headers"])
        else:
            answer["body"] += event.get("body", b"")

    scope = {
        "type": "http", "method": method, "raw_path": target, "path": target.decode("latin-1"), "query_string": query,
        "headers": list(headers), "client": client, "scheme": "https", "http_version": "1.1", "root_path": "",
        "asgi": {"version": "3.0"}, "server": ("gateway", 443),
    }  # fmt: skip
    asyncio.run(gateway(scope, receive, send))
    return answer
