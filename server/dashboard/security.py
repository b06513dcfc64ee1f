"""What every answer carries, and whom the page answers: this machine only."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from popmi_core.errors import ConfigError

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class LocalOnly:
    """Refuse a foreign ``Host`` (a web page elsewhere that points its name at this machine) and harden answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def harden(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        if host_name(Headers(scope=scope).get("host", "")) in _LOCAL_NAMES:
            await self._app(scope, receive, harden)
        else:
            answer = PlainTextResponse("This page answers to localhost and 127.0.0.1 only.\n", status_code=400)
            await answer(scope, receive, harden)


def host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def require_loopback(host: str) -> None:
    """Refuse to listen where others could reach the page: it has no login yet.

    Raises:
        ConfigError: If ``host`` is no loopback address.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"host {host!r} is no loopback address, expected 127.0.0.1: the pages have no login yet. "
            "To look from another machine, forward the port: ssh -L 8080:127.0.0.1:8080 SERVER."
        )
