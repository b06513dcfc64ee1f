"""The doctor's way to the server, against a local TLS server with every kind of certificate, and a clock that lies."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from site_parts import Authority, make_home, make_kit
from typer.testing import CliRunner

from client.site import doctor, network
from client.site.commands import app
from client.site.connection import ask_health, proxy_environment, target_of
from client.site.findings import Finding
from client.site.home import SiteHome
from client.site.network import certificate_dates, check_network, clock_skew
from client.site.run import free_port
from popmi_core.errors import SetupError

AUTHORITY = Authority()
DAY = 86400.0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def gateway(
    certificate: tuple[Path, Path], *, status: int = 200, ahead: float = 0.0, date: bool = True
) -> Iterator[int]:
    """Answer every TLS connection like a gateway whose clock is ``ahead`` seconds ahead; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def answer(opened: socket.socket) -> None:
        with context.wrap_socket(opened, server_side=True) as channel:
            if not channel.recv(4096):
                return
            told = f"Date: {formatdate(time.time() + ahead, usegmt=True)}\r\n" if date else ""
            channel.sendall(f"HTTP/1.1 {status} X\r\n{told}Content-Length: 2\r\n\r\nok".encode())

    with listening(answer) as port:
        yield port


@contextmanager
def listening(answer) -> Iterator[int]:
    """Call ``answer`` with every connection, in a thread; yield the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                opened, _ = server.accept()
            except OSError:
                return
            with opened:
                try:
                    answer(opened)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def found(
    port: int, *, host: str = "localhost", ca: str = AUTHORITY.pem, proxy=None, now=time.time
) -> dict[str, Finding]:
    return {item.name: item for item in check_network(f"{host}:{port}", ca, proxy, now)}


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: item.state for name, item in findings.items() if item.state != "ok"}


def test_all_is_well_with_the_right_certificate(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path)) as port:
        findings = found(port)
    assert states(findings) == {}
    assert (
        findings["certificate chain"].found
        == "the certificate of 'gateway', signed by 'test authority', as the kit says"
    )
    assert findings["certificate dates"].found.startswith("89 days left")
    assert set(findings) == {
        *("proxy", "DNS", "port", "clock", "gateway"),
        *("certificate chain", "certificate name", "certificate dates"),
    }


def test_another_authoritys_certificate_is_named_with_its_signer(tmp_path):
    with gateway(Authority("a device that opens TLS").sign(tmp_path)) as port:
        findings = found(port)
    assert states(findings) == {"certificate chain": "failed", "gateway": "failed"}
    assert "signed by 'a device that opens TLS'; the kit trusts 'test authority'" in findings["certificate chain"].found
    assert "let it pass this host unopened" in findings["certificate chain"].remedy
    # The clock is told all the same: it may be the reason.
    assert findings["clock"].state == "ok"


def test_a_certificate_for_another_host_is_named_with_its_host(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path, host="elsewhere.example")) as port:
        findings = found(port)
    assert states(findings) == {"certificate name": "failed", "gateway": "failed"}
    assert findings["certificate name"].found == "the certificate is for elsewhere.example, expected localhost"


@pytest.mark.parametrize(
    ("begin", "end", "said"), [(-90, -2, "expired 2 days ago"), (2, 90, "not yet valid: valid from")]
)
def test_a_certificate_out_of_its_dates_is_told_with_them(tmp_path, begin, end, said):
    with gateway(AUTHORITY.sign(tmp_path, begin=begin, end=end)) as port:
        findings = found(port)
    assert states(findings) == {"certificate dates": "failed", "gateway": "failed"}
    assert findings["certificate dates"].found.startswith(said)
    assert "clock first" in findings["certificate dates"].remedy


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path, end=10.5)) as port:
        findings = found(port)
    assert states(findings) == {"certificate dates": "warning"}
    assert findings["certificate dates"].found.startswith("10 days left")


def test_days_are_counted_by_the_clock_that_is_given(tmp_path):
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(AUTHORITY.sign(tmp_path)[0].read_bytes())
    assert certificate_dates(certificate, time.time() + 100 * DAY).state == "failed"
    assert certificate_dates(certificate, time.time() - 10 * DAY).state == "failed"
    assert certificate_dates(certificate, time.time() + 80 * DAY).state == "warning"


@pytest.mark.parametrize(
    ("skew", "state"),
    [
        (0, "ok"),
        (2, "ok"),
        (4, "warning"),
        (6, "failed"),
        (10, "failed"),
        (-20, "ok"),
        (-60, "warning"),
        (-400, "failed"),
    ],
)
def test_a_clock_is_judged_by_what_flower_refuses(skew, state):
    finding = clock_skew(skew)
    assert finding.state == state
    told = f"{abs(skew)} s {'ahead of' if skew > 0 else 'behind'} the server" if skew else "as the server's"
    assert told in finding.found
    assert bool(finding.remedy) == (state != "ok")


@pytest.mark.parametrize("ahead", [10, -400])
def test_the_servers_clock_is_read_from_its_answer(tmp_path, ahead):
    with gateway(AUTHORITY.sign(tmp_path)) as port:
        findings = found(port, now=lambda: time.time() + ahead)
    assert findings["clock"].state == "failed"
    assert ("ahead of" if ahead > 0 else "behind") in findings["clock"].found
    assert "timedatectl" in findings["clock"].remedy


def test_a_slow_answer_is_no_skew(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path)) as port:
        # The first look is for the certificate's dates.
        times = iter([time.time(), time.time() - 30, time.time() + 60])
        findings = found(port, now=lambda: next(times))
    assert findings["clock"].found == "as the server's"


def test_a_server_that_hides_its_time_is_a_warning(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path), date=False) as port:
        assert states(found(port)) == {"clock": "warning"}


def test_a_gateway_without_a_server_behind_it_says_so(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path), status=503) as port:
        findings = found(port)
    assert states(findings) == {"gateway": "failed"}
    assert findings["gateway"].found == "/health answers 503"


def test_a_closed_port_and_an_unknown_name_end_the_walk_where_it_broke(monkeypatch):
    findings = found(free_port())
    assert states(findings) == {"port": "failed"}
    assert "Connection refused" in findings["port"].found
    assert "gateway" not in findings

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", unknown)
    findings = found(443, host="nowhere.invalid")
    assert states(findings) == {"DNS": "failed"}
    assert findings["DNS"].found == "nowhere.invalid has no address (Name or service not known)"


def test_a_port_that_speaks_no_tls_is_told_apart_from_a_bad_certificate():
    with listening(lambda opened: opened.sendall(b"SSH-2.0-OpenSSH\r\n")) as port:
        assert states(found(port)) == {"TLS": "failed"}


def test_a_proxy_is_used_shown_without_its_password_and_its_refusal_told(tmp_path, monkeypatch):
    asked: list[bytes] = []
    with gateway(AUTHORITY.sign(tmp_path)) as port:

        def tunnel(opened: socket.socket) -> None:
            request = opened.recv(4096)
            asked.append(request)
            if b"Basic" not in request:
                opened.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as behind:
                opened.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                pump(opened, behind)

        with listening(tunnel) as proxy:
            findings = found(port, proxy=f"http://me:secret@127.0.0.1:{proxy}")
            assert states(findings) == {}
            assert findings["proxy"].found.startswith(f"http://127.0.0.1:{proxy} ")
            assert "secret" not in str(findings)
            assert asked[0].startswith(f"CONNECT localhost:{port} HTTP/1.1".encode())
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
            refused = found(port)
            assert states(refused) == {"port": "failed"}
            assert "the proxy answers 'HTTP/1.1 407" in refused["port"].found
            monkeypatch.setenv("NO_PROXY", "localhost")
            assert states(found(port)) == {}


def pump(one: socket.socket, other: socket.socket) -> None:
    def move(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=move, args=(other, one), daemon=True)
    back.start()
    move(one, other)
    back.join(10)


def test_a_proxy_that_is_no_http_proxy_is_refused():
    with pytest.raises(SetupError, match="the proxy has the scheme 'socks5'"):
        target_of("a:1", "socks5://b:2")
    assert states({item.name: item for item in check_network("a:1", "", "socks5://b:2", time.time)}) == {
        "proxy": "failed"
    }


def test_an_ipv6_endpoint_is_understood():
    target = target_of("[::1]:8443")
    assert (target.host, target.port) == ("::1", 8443)


def test_a_node_behind_a_proxy_still_reaches_its_own_machine(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intra.example")
    told = proxy_environment("http://p:1")
    assert told["HTTPS_PROXY"] == "http://p:1"
    assert told["NO_PROXY"] == "intra.example,127.0.0.1,localhost,::1"
    assert "HTTPS_PROXY" not in proxy_environment(None)


def test_health_is_asked_with_trust_and_read(tmp_path):
    with gateway(AUTHORITY.sign(tmp_path)) as port:
        told = ask_health(target_of(f"localhost:{port}"), AUTHORITY.pem)
    assert (told.status, told.body) == (200, "ok")
    assert told.date == pytest.approx(time.time(), abs=60)


def test_the_command_ends_with_zero_or_one_and_speaks_json(tmp_path, monkeypatch):
    monkeypatch.setattr("client.site.machine.LITTLE_DISK", 0.0)
    with gateway(AUTHORITY.sign(tmp_path)) as port:
        home = make_home(tmp_path / "site", make_kit(endpoint=f"localhost:{port}", ca_pem=AUTHORITY.pem))
        done = CliRunner().invoke(app, ["doctor", "--json", "--home", str(home.folder)])
    told = json.loads(done.stdout)
    assert told["ok"], done.stdout
    assert done.exit_code == 0
    assert {item["name"] for item in told["findings"]} >= {
        "GPU",
        "disk",
        "memory",
        "key",
        "data",
        "approved code",
        "flwr",
    }
    done = CliRunner().invoke(app, ["doctor", "--home", str(home.folder)])
    assert done.exit_code == 1
    assert "FAILED   port" in done.stdout
    assert "-> Let your firewall" in done.stdout
    first, second = (entry.details for entry in home.audit.entries() if entry.event == "doctor")
    assert first["failed"] == {}
    assert first["warning"].keys() >= {"data", "approved code"}
    # With what was found, so that the log tells by how many seconds, or whose certificate.
    assert second["failed"] == {"port": f"localhost:{port} cannot be reached (Connection refused)"}


def test_a_folder_that_is_no_site_is_one_finding(tmp_path):
    findings = doctor.examine(SiteHome(tmp_path))
    assert [(item.name, item.state) for item in findings] == [("site folder", "failed")]
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path)])
    assert done.exit_code == 1
    assert not (tmp_path / "audit.jsonl").exists()


def test_an_expired_authority_is_told_and_not_only_that_something_is_wrong(tmp_path):
    now = time.time() + 401 * DAY
    with gateway(AUTHORITY.sign(tmp_path, end=900)) as port:
        findings = found(port, now=lambda: now)
    assert findings["certificate dates"].state == "ok"
    assert findings["certificate chain"].state == "failed"
    assert "the authority's own: expired 1 days ago" in findings["certificate chain"].found
    assert "new kit" in findings["certificate chain"].remedy
