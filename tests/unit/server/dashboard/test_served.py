"""The pages behind a real port: TLS, slow callers, many connections, the first admin's link."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from served_pages import reader, served
from signing_in import PASSWORD, secret_of, sign_in
from sqlalchemy.engine import Engine

from server.centre import open_centre
from server.connections import ConnectionLimits
from server.dashboard.access import bodies
from server.dashboard.access.binding import Binding

ROOT = Path(__file__).parents[4]
COMMAND = [sys.executable, "-c", "from popmi_core.cli.main import app; app()"]


def test_pages_speak_tls_and_sign_in_over_it(centre: Engine, runs: Path, pair: tuple[Path, Path]) -> None:
    trust = ssl.create_default_context(cafile=str(pair[0]))
    with served(centre, runs, binding=Binding(certificate=pair[0], key=pair[1])) as place:
        assert place.address().startswith("https://")
        with reader(place, verify=trust) as client:
            answer = sign_in(client, "vera")
            assert answer.status_code == 303
            assert answer.headers["set-cookie"].startswith("__Host-popmi=")
            page = client.get("/")
            assert page.status_code == 200
            # Not of an address or of localhost: it would hold for whatever else this machine's ports speak.
            assert "strict-transport-security" not in page.headers
        # No page without TLS at the same port.
        with pytest.raises(httpx.HTTPError):
            httpx.get(place.address().replace("https", "http"), timeout=5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_tls_is_refused_by_the_pages(centre: Engine, runs: Path, pair: tuple[Path, Path]) -> None:
    with served(centre, runs, binding=Binding(certificate=pair[0], key=pair[1])) as place:
        for version, taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(("127.0.0.1", place.port), timeout=10) as line:
                if not taken:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        context.wrap_socket(line)
                else:
                    with context.wrap_socket(line) as wrapped:
                        assert wrapped.version() == "TLSv1.2"


def closed_after(place: Binding, begin: bytes, trickle: bytes = b"") -> tuple[float, bytes]:
    """Send a begin and then byte after byte; returns the seconds until the server closed, and what it said."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", place.port), timeout=0.1) as line:
        line.sendall(begin)
        said = b""
        while time.monotonic() - began < 15:
            try:
                if trickle:
                    line.sendall(trickle)
                piece = line.recv(4096)
                if not piece:
                    break
                said += piece
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began, said


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_who_does_not_finish_a_header_is_cut_off(centre: Engine, runs: Path, begin: bytes) -> None:
    with served(centre, runs, connections=ConnectionLimits(header_seconds=0.6)) as place:
        trickle = b"X-A: b\r\n" if begin else b""
        seconds, _ = closed_after(place, begin, trickle)
        assert seconds < 5
        with reader(place) as client:
            assert client.get("/healthz").status_code == 200


def test_who_trickles_a_body_is_told_and_cut_off(centre: Engine, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.6)
    begin = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n"
    with served(centre, runs) as place:
        seconds, said = closed_after(place, begin, b"x")
        assert seconds < 5
        assert said.startswith(b"HTTP/1.1 408")
        assert b"took too long to arrive" in said


def test_an_oversized_body_is_refused_before_it_is_sent(centre: Engine, runs: Path) -> None:
    begin = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n"
    with served(centre, runs) as place:
        seconds, said = closed_after(place, begin)
        assert seconds < 5
        assert said.startswith(b"HTTP/1.1 413")


def test_an_oversized_header_is_refused(centre: Engine, runs: Path) -> None:
    with served(centre, runs) as place:
        _, said = closed_after(place, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        assert said.startswith((b"HTTP/1.1 4", b"")), said[:80]
        with reader(place) as client:
            assert client.get("/healthz").status_code == 200


def test_one_address_holds_so_many_connections(centre: Engine, runs: Path) -> None:
    with served(centre, runs, connections=ConnectionLimits(each=4)) as place:
        lines = [socket.create_connection(("127.0.0.1", place.port), timeout=10) for _ in range(4)]
        time.sleep(0.3)
        assert closed_after(place, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")[1] == b""
        for line in lines:
            line.close()
        time.sleep(0.5)
        with reader(place) as client:
            assert client.get("/healthz").status_code == 200


def test_serve_prints_the_first_admins_link_once_and_keeps_people_signed_in_over_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("POPMI_DATABASE", None)
    initial = ["server", "init", "--project", "P", "--endpoint", "localhost:8443", "--classes", "a,b", "--home", home]
    subprocess.run([*COMMAND, *map(str, initial)], check=True, env=environment, cwd=ROOT, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cookies: dict[str, str] = {}
    for first in (True, False):
        process = subprocess.Popen(
            [*COMMAND, "serve", "--home", str(home), "--port", str(port)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said = [process.stdout.readline() for _ in range(3 if first else 1)]
            assert f"http://127.0.0.1:{port}" in said[0]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, cookies=cookies) as client:
                if first:
                    link = re.search(r"/first\?key=[\w-]{43}", said[2])
                    assert link is not None
                    page = client.get(link[0]).text
                    form = {"key": link[0].partition("=")[2], "name": "anna", "csrf": secret_of(page)}
                    assert client.post("/first", data=form | dict.fromkeys(("password", "again"), PASSWORD)).is_redirect
                    cookies = dict(client.cookies)
                assert client.get("/accounts").status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
            more = process.communicate(timeout=20)[0]
        assert "first admin" not in more
    assert (home / "centre.sqlite").stat().st_mode & 0o077 == 0
    engine = open_centre(home / "centre.sqlite")
    engine.dispose()
