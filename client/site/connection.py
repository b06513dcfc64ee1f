"""One HTTPS request by hand: through a proxy or not, trusting the kit's authority or, only to look, nobody.

An HTTP library would say that the handshake failed; a hospital's IT must hear whose certificate it saw.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from popmi_core.errors import SetupError

SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """Where the gateway is, and the proxy that leads there, if any (``http://[user:password@]host:port``)."""

    host: str
    port: int
    proxy: str | None = None

    @property
    def proxy_shown(self) -> str:
        """The proxy without its password."""
        parts = urlsplit(self.proxy or "")
        return f"{parts.scheme}://{parts.hostname}:{parts.port or 80}"

    @property
    def first_hop(self) -> tuple[str, int]:
        """Host and port this machine itself connects to."""
        if self.proxy is None:
            return self.host, self.port
        parts = urlsplit(self.proxy)
        return parts.hostname or "", parts.port or 80


@dataclass(frozen=True)
class Answer:
    """What ``/health`` answered: status, the server's clock in seconds since 1970 (None: not told), first bytes."""

    status: int
    date: float | None
    body: str


def target_of(endpoint: str, proxy: str | None = None) -> Target:
    """Return where ``host:port`` is reached: by the given proxy, else by the environment's, else directly.

    Raises:
        SetupError: If the proxy is not one this can use.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    if proxy_bypass(host):
        # As the node does it, also where site.toml names a proxy.
        proxy = None
    elif proxy is None:
        found = getproxies()
        proxy = found.get("https") or found.get("all")
    if proxy is not None:
        _refuse_unusable(proxy)
    return Target(host, int(port), proxy)


def _refuse_unusable(proxy: str) -> None:
    try:
        parts = urlsplit(proxy)
        usable, scheme = bool(parts.hostname) and (parts.port is None or parts.port > 0), parts.scheme
    except ValueError:
        usable, scheme = False, "http"
    if scheme != "http":
        raise SetupError(
            f"the proxy has the scheme '{scheme}', expected http://host:port (the connection through it is encrypted "
            "all the same). Correct HTTPS_PROXY or 'proxy' in site.toml."
        )
    if not usable:
        # Not the text itself: it may hold a password.
        raise SetupError(
            "the proxy has no usable host or port, expected http://host:port. Correct HTTPS_PROXY or 'proxy' in "
            "site.toml."
        )


def proxy_environment(proxy: str | None) -> dict[str, str]:
    """Return the variables a node needs to go through ``proxy``, and to reach this machine itself without any."""
    spared = [part.strip() for part in (os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "").split(",")]
    local = ",".join(dict.fromkeys([*filter(None, spared), "127.0.0.1", "localhost", "::1"]))
    told = {"NO_PROXY": local, "no_proxy": local}
    return told if proxy is None else {**told, "HTTPS_PROXY": proxy, "https_proxy": proxy}


def connect(target: Target, seconds: float = SECONDS) -> socket.socket:
    """Return an open connection to the gateway, through the proxy where there is one.

    Raises:
        OSError: If nobody listens, or the proxy refuses.
    """
    opened = socket.create_connection(target.first_hop, timeout=seconds)
    if target.proxy is None:
        return opened
    try:
        _ask_proxy(opened, target)
    except BaseException:
        opened.close()
        raise
    return opened


def seen_certificate(target: Target) -> bytes:
    """Return the certificate the other side shows (DER), whoever it is; nothing is sent to it.

    Raises:
        OSError: If there is no TLS at all.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(target) as opened, context.wrap_socket(opened, server_hostname=target.host) as channel:
        return channel.getpeercert(binary_form=True) or b""


def verify_chain(target: Target, ca_pem: str) -> None:
    """Shake hands as the node will, but for the name, which is looked at apart.

    Raises:
        ssl.SSLCertVerificationError: If the certificate is not to be trusted; ``verify_code`` says why.
        OSError: If there is no connection.
    """
    with connect(target) as opened, _trusting(ca_pem, name=False).wrap_socket(opened, server_hostname=target.host):
        pass


def ask_health(target: Target, ca_pem: str | None) -> Answer:
    """Return what ``GET /health`` answers; ``ca_pem`` None trusts anybody, which is enough to read a clock.

    Raises:
        OSError: If there is no connection, or no trust.
        http.client.HTTPException: If the answer is no HTTP.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca_pem is None else _trusting(ca_pem, name=True)
    if ca_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with connect(target) as opened, context.wrap_socket(opened, server_hostname=target.host) as channel:
        request = f"GET /health HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n\r\n"
        channel.sendall(request.encode())
        response = http.client.HTTPResponse(channel)
        response.begin()
        return Answer(response.status, _seconds(response.headers), response.read(200).decode("utf-8", "replace"))


def _trusting(ca_pem: str, *, name: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = name
    context.load_verify_locations(cadata=ca_pem)
    return context


def _ask_proxy(opened: socket.socket, target: Target) -> None:
    parts = urlsplit(target.proxy or "")
    where = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
    opened.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    told = b""
    # Byte by byte: what comes after the blank line belongs to TLS already.
    while not told.endswith(b"\r\n\r\n") and len(told) < 65536:
        if not (byte := opened.recv(1)):
            break
        told += byte
    first = told.split(b"\r\n", 1)[0].decode("latin-1")
    fields = first.split(None, 2)
    if len(fields) < 2 or fields[1] != "200":
        raise ConnectionRefusedError(f"the proxy answers '{first[:80]}'")


def _seconds(headers: http.client.HTTPMessage) -> float | None:
    try:
        return parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
