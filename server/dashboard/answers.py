"""Answers that are sent to many: packed once, and not at all to who has them."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from server.dashboard.access.person import person_of
from server.dashboard.kept import Part


def answer(request: Request, part: Part, media_type: str) -> Response:
    """Return a part, gzipped where the browser takes it; 304 where it has it already."""
    headers = {"ETag": f'"{part.digest}"', "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding, Cookie"}
    if part.digest in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(part.packed, media_type=media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(part.data, media_type=media_type, headers=headers)


def html(text: str) -> Response:
    """Return a piece of a page."""
    return HTMLResponse(text.encode("utf-8", "replace"))


def stream(request: Request, key: str | None, seen: str) -> Response:
    """Return the event stream of a run, or of the list (None)."""
    # A browser that comes back by itself says what it saw last.
    seen = request.headers.get("last-event-id", seen)
    events = request.app.state.watcher.stream(key, seen, person_of(request).session)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
