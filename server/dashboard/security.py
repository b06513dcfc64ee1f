"""What every answer carries, and by which host names the pages answer."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.dashboard.access.binding import LOCAL_NAMES, Binding, host_name

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers call the origin of a form "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_TLS_FROM_NOW_ON = "max-age=31536000"


class Hardened:
    """Refuse a foreign ``Host`` (a web page elsewhere that points its name at this machine) and harden answers.

    Args:
        app: What answers.
        binding: Where the pages listen, and by which names.
    """

    def __init__(self, app: ASGIApp, *, binding: Binding) -> None:
        self._app, self._binding = app, binding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._binding.secure:
            # Behind a proxy the connection itself speaks no TLS, but every browser does.
            scope["scheme"] = "https"

        asked = host_name(Headers(scope=scope).get("host", ""))

        async def harden(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                # Of localhost it would hold for whatever else this machine's ports speak.
                if self._binding.secure and asked not in LOCAL_NAMES:
                    headers["Strict-Transport-Security"] = _TLS_FROM_NOW_ON
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        if asked in self._binding.allowed(scope["path"]):
            await self._app(scope, receive, harden)
        else:
            names = " and ".join(sorted(self._binding.allowed("/")))
            answer = PlainTextResponse(f"This page answers to {names} only.\n", status_code=400)
            await answer(scope, receive, harden)
