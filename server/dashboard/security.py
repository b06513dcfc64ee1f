"""What every answer carries, and whom the page answers: this machine only, and Prometheus where it is named."""

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
METRICS = "/metrics"


class LocalOnly:
    """Refuse a foreign ``Host`` (a web page elsewhere that points its name at this machine) and harden answers.

    Args:
        app: What answers.
        metrics_name: A further name under which ``/metrics``, and nothing else, answers.
    """

    def __init__(self, app: ASGIApp, *, metrics_name: str | None = None) -> None:
        self._app = app
        self._metrics_names = _LOCAL_NAMES | ({metrics_name.lower()} if metrics_name else set())

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

        allowed = self._metrics_names if scope["path"] == METRICS else _LOCAL_NAMES
        if host_name(Headers(scope=scope).get("host", "")) in allowed:
            await self._app(scope, receive, harden)
        else:
            answer = PlainTextResponse("This page answers to localhost and 127.0.0.1 only.\n", status_code=400)
            await answer(scope, receive, harden)


def host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def require_loopback(host: str, *, published_on: str | None = None) -> None:
    """Refuse to listen where others could reach the page: it has no login yet.

    Args:
        host: Address to listen on.
        published_on: In a container, the address of the machine on which its port is published; then that one counts,
            and ``host`` may be the container's own network.

    Raises:
        ConfigError: If the address that counts is no loopback address.
    """
    if published_on is not None and not _is_loopback(published_on):
        raise ConfigError(
            f"published on {published_on!r}, which is no loopback address, expected 127.0.0.1: the pages have no login "
            "yet. Publish the container's port as 127.0.0.1:8080:8080 and say --published-on 127.0.0.1."
        )
    if published_on is None and not _is_loopback(host):
        raise ConfigError(
            f"host {host!r} is no loopback address, expected 127.0.0.1: the pages have no login yet. "
            "To look from another machine, forward the port: ssh -L 8080:127.0.0.1:8080 SERVER. In a container whose "
            "port is published on this machine only, say so: --published-on 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
