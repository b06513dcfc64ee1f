"""The gateway as a process serves it: TLS, limits of the protocol, a port that is taken."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading

import httpx
import pytest

from popmi_core.errors import SetupError
from server.connections import BoundedServer
from server.control import gateway
from server.control.gateway import Gateway, serve, upstream_client


@pytest.fixture
def served(home, monkeypatch):
    """Serve the gateway on a free port with the home's certificate; what is upstream is away."""
    servers, ready = [], threading.Event()

    class Server(BoundedServer):
        def __init__(self, config, limits):
            super().__init__(config, limits)
            servers.append(self)

    monkeypatch.setattr(gateway, "BoundedServer", Server)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    thread = threading.Thread(
        target=serve,
        args=(Gateway(upstream_client("127.0.0.1:1", home.ca)),),
        kwargs={
            "host": "127.0.0.1", "port": port, "certificate": home.certificate, "key": home.key, "started": ready.set,
        },
    )  # fmt: skip
    thread.start()
    assert ready.wait(20)
    yield port
    servers[0].should_exit = True
    thread.join(20)


def raw(home, port, request: bytes) -> bytes:
    """Send bytes as they are over TLS and return what comes back."""
    context = ssl.create_default_context(cafile=str(home.ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(request)
        got = b""
        while piece := secured.recv(65536):
            got += piece
            if b"\r\n\r\n" in got:
                break
        return got


def test_health_over_tls_and_nothing_about_what_serves_it(home, served):
    context = ssl.create_default_context(cafile=str(home.ca))
    answer = httpx.get(f"https://127.0.0.1:{served}/health", verify=context, trust_env=False)
    assert (answer.status_code, answer.text) == (200, "ok")
    assert "server" not in answer.headers
    away = httpx.post(f"https://127.0.0.1:{served}/v1/fleet/get-run", verify=context, content=b"x", trust_env=False)
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://127.0.0.1:{served}/health", trust_env=False)


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/fleet/%2e%2e/control/list-runs HTTP/1.1", b"POST /v1/fleet/../control/list-runs HTTP/1.1",
        b"POST https://127.0.0.1/v1/control/list-runs HTTP/1.1", b"POST //v1/control/list-runs HTTP/1.1",
        b"POST /v1/fleet/..;/control/list-runs HTTP/1.1", b"GET /v1/fleet/pull-messages HTTP/1.1",
        b"POST /v1/fleet/pull%2dmessages HTTP/1.1",
    ],
)  # fmt: skip
def test_raw_spellings_of_other_paths_are_not_there(home, served, line):
    request = line + b"\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert raw(home, served, request).startswith(b"HTTP/1.1 404")


def test_headers_without_end_are_refused(home, served):
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n"
    assert raw(home, served, request).startswith(b"HTTP/1.1 4")


def test_two_lengths_that_differ_are_refused(home, served):
    request = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    assert raw(home, served, request).startswith(b"HTTP/1.1 400")


def test_an_old_tls_is_refused(home, served):
    context = ssl.create_default_context(cafile=str(home.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"SSL|TLS|protocol"):
        asyncio.run(asyncio.open_connection("127.0.0.1", served, ssl=context, server_hostname="localhost"))


def test_a_port_that_is_taken_is_told(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError, match=r"cannot listen on 127.0.0.1 port"):
            serve(
                Gateway(upstream_client("127.0.0.1:1", home.ca)),
                host="127.0.0.1",
                port=taken.getsockname()[1],
                certificate=home.certificate,
                key=home.key,
            )


def test_a_certificate_that_is_unusable_is_told(home):
    home.certificate.write_text("x")
    with pytest.raises(SetupError, match="is unusable"):
        serve(
            Gateway(upstream_client("127.0.0.1:1", home.ca)),
            host="127.0.0.1",
            port=1,
            certificate=home.certificate,
            key=home.key,
        )
