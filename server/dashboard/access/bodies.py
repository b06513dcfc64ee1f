"""What a request may send: so much, in so much time; read once, before anything is done with it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

BODY_BYTES = 1_000_000
UPLOAD_BYTES = 2_000_000
BODY_SECONDS = 20.0
"""Two megabytes in twenty seconds are 0.8 Mbit/s."""


class BodyRefused(Exception):
    """A body is too large (413), came too slowly (408), or its length is none (400)."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the whole body.

    Raises:
        BodyRefused: If it is too large or too slow, or the caller left.
    """
    headers = dict(scope["headers"])
    limit = UPLOAD_BYTES if headers.get(b"content-type", b"").startswith(b"multipart/") else BODY_BYTES
    said = headers.get(b"content-length", b"0")
    if not said.isdigit():
        raise BodyRefused(400)
    # Said honestly, it need not be sent at all.
    if len(said) > 12 or int(said) > limit:
        raise BodyRefused(413)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _gather(receive, limit)
    except TimeoutError as error:
        raise BodyRefused(408) from error


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that hands out a body that was read, and then whatever else comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def form_field(scope: Scope, body: bytes, receive: Receive, name: str) -> str:
    """Return one text field of a form, empty where there is none."""
    kind = dict(scope["headers"]).get(b"content-type", b"")
    if not kind.startswith((b"application/x-www-form-urlencoded", b"multipart/form-data")):
        return ""
    async with Request(scope, replay(body, receive)).form(max_files=4, max_fields=1000) as form:
        found = form.get(name, "")
    return found if isinstance(found, str) else ""


async def _gather(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyRefused(400)
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyRefused(413)
        if not message.get("more_body", False):
            return bytes(body)
