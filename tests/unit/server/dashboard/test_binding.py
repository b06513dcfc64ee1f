"""Where the pages listen, by which names they answer, and whom they believe."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from signing_in import app_of
from sqlalchemy.engine import Engine

from popmi_core.errors import ConfigError
from server.dashboard.access.binding import Binding, check, client_address, host_name, host_port


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.4", "::", "example.org", ""])
def test_a_public_address_without_tls_or_a_proxy_is_refused_even_with_accounts(host: str) -> None:
    for login in (True, False):
        with pytest.raises(ConfigError, match=r"no loopback address, expected 127\.0\.0\.1: passwords would cross"):
            check(Binding(host=host), login=login)


def test_a_public_address_without_accounts_is_refused_even_with_tls(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="nobody has to sign in here"):
        check(Binding(host="192.0.2.7", certificate=pair[0], key=pair[1]), login=False)
    with pytest.raises(ConfigError, match="nobody has to sign in here"):
        check(Binding(behind_proxy="https://pages.example"), login=False)


def test_tls_and_a_proxy_open_a_public_address_to_people_who_sign_in(pair: tuple[Path, Path]) -> None:
    check(Binding(host="192.0.2.7", certificate=pair[0], key=pair[1]), login=True)
    check(Binding(host="0.0.0.0", certificate=pair[0], key=pair[1], names=("pages.example",)), login=True)
    check(Binding(host="0.0.0.0", behind_proxy="https://pages.example"), login=True)
    check(Binding(host="127.0.0.1", behind_proxy="https://pages.example:8443/"), login=True)
    check(Binding(host="127.0.0.1", certificate=pair[0], key=pair[1]), login=False)


def test_every_address_with_tls_needs_a_name(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="--name must say by which name"):
        check(Binding(host="0.0.0.0", certificate=pair[0], key=pair[1]), login=True)


@pytest.mark.parametrize(
    "proxy", ["http://pages.example", "pages.example", "https://", "https://a/b", "https://u:p@a", "https://a b", "//a"]
)
def test_a_proxy_that_speaks_no_tls_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError, match="expected https://NAME or https://NAME:PORT"):
        check(Binding(behind_proxy=proxy), login=True)


def test_a_proxys_address_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"--proxy-address 'proxy': expected an IP address or a network"):
        check(Binding(behind_proxy="https://a", proxy_addresses=("10.0.0.0/24", "proxy")), login=True)


def test_what_does_not_fit_together_is_refused(pair: tuple[Path, Path]) -> None:
    for more in ({"certificate": pair[0], "key": pair[1]}, {"published_on": "127.0.0.1"}):
        with pytest.raises(ConfigError, match="goes with neither"):
            check(Binding(behind_proxy="https://a", **more), login=True)
    for more in ({"certificate": pair[0]}, {"key": pair[1]}):
        with pytest.raises(ConfigError, match="--tls-certificate and --tls-key go together"):
            check(Binding(**more), login=True)


def test_a_certificate_that_cannot_be_used_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other").write_text("no key")
    for certificate, key in ((pair[0], tmp_path / "missing"), (pair[0], tmp_path / "other"), (pair[1], pair[0])):
        with pytest.raises(ConfigError, match=r"cannot be used: .*Expected two PEM files that belong together"):
            check(Binding(certificate=certificate, key=key), login=True)


def test_a_key_that_others_can_read_is_warned_of(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "open"
    shutil.copy(pair[1], key)
    key.chmod(0o644)
    with caplog.at_level(logging.WARNING, "popmi.dashboard"):
        check(Binding(certificate=pair[0], key=pair[1]), login=True)
        assert caplog.text == ""
        check(Binding(certificate=pair[0], key=key), login=True)
    assert f"key {key} can be read by others on this machine: chmod 600 it" in caplog.text


@pytest.mark.parametrize("name", ["https://a", "a:80", "a b", "", "-a", "a\r\nb"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"host name .*expected a name or an address alone"):
        check(Binding(names=(name,)), login=True)


@pytest.mark.parametrize(
    ("header", "name", "port"),
    [
        ("localhost:8080", "localhost", "8080"),
        ("LOCALHOST", "localhost", ""),
        ("[::1]:8080", "::1", "8080"),
        ("[::1]", "::1", ""),
        ("127.0.0.1:abc", "", ""),
        ("127.0.0.1:8080:1", "", ""),
        ("127.0.0.1@evil", "", ""),
        ("127.0.0.1/evil", "", ""),
        ("", "", ""),
        ("::1", "", ""),
    ],
)
def test_a_host_header_is_taken_apart(header: str, name: str, port: str) -> None:
    assert (host_name(header), host_port(header)) == (name, port)


def test_pages_answer_to_their_own_names_only() -> None:
    local = Binding(host="192.0.2.7", names=("Pages.example",), metrics_name="dashboard")
    assert local.allowed("/") == {"localhost", "127.0.0.1", "::1", "192.0.2.7", "pages.example"}
    assert local.allowed("/metrics") == local.allowed("/") | {"dashboard"}
    proxied = Binding(behind_proxy="https://pages.example:8443")
    assert proxied.allowed("/") == {"pages.example"}
    assert proxied.allowed("/healthz") == {"pages.example", "localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the first was told by the caller
        ("127.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9, 10.0.0.5"], "203.0.113.9"),  # through two proxies of ours
        ("127.0.0.1", ["203.0.113.9, nonsense"], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("203.0.113.1", ["198.51.100.1"], "203.0.113.1"),  # no proxy of ours
        ("::ffff:10.0.0.7", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_only_the_stated_proxy_is_believed_about_an_address(peer: str, forwarded: list[str], address: str) -> None:
    binding = Binding(behind_proxy="https://a", proxy_addresses=("127.0.0.1", "10.0.0.0/24"))
    assert client_address(binding, peer, forwarded) == address
    assert client_address(Binding(), peer, forwarded) == peer


def test_past_the_proxy_nothing_is_answered_but_health(centre: Engine, runs: Path) -> None:
    app = app_of(centre, runs, binding=Binding(behind_proxy="https://pages.example", proxy_addresses=("10.0.0.5",)))
    with TestClient(app, base_url="https://pages.example", client=("10.0.0.6", 1), follow_redirects=False) as client:
        assert client.get("/").status_code == 403
        assert client.get("/login").status_code == 403
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/", headers={"Host": "127.0.0.1:8080"}).status_code == 400
        assert client.get("/healthz", headers={"Host": "localhost:8080"}).status_code == 200
    with TestClient(app, base_url="https://pages.example", client=("10.0.0.5", 1), follow_redirects=False) as client:
        assert client.get("/").status_code == 303


def test_metrics_are_for_everybody_here_and_for_tokens_elsewhere(
    centre: Engine, runs: Path, pair: tuple[Path, Path]
) -> None:
    with TestClient(
        app_of(centre, runs, binding=Binding(metrics_name="dashboard")), base_url="http://dashboard"
    ) as one:
        assert one.get("/metrics").status_code == 200
        assert one.get("/").status_code == 400
    public = Binding(host="192.0.2.7", certificate=pair[0], key=pair[1], metrics_name="dashboard")
    with TestClient(app_of(centre, runs, binding=public), base_url="https://dashboard") as one:
        assert one.get("/metrics").status_code == 401


@pytest.mark.parametrize(
    ("binding", "address"),
    [
        (Binding(port=9000), "http://127.0.0.1:9000"),
        (Binding(host="::1"), "http://[::1]:8080"),
        (Binding(host="0.0.0.0", published_on="127.0.0.1"), "http://127.0.0.1:8080"),
        (Binding(host="0.0.0.0", published_on="127.0.0.1", published_port=9000), "http://127.0.0.1:9000"),
        (Binding(behind_proxy="https://pages.example/"), "https://pages.example"),
        (Binding(host="0.0.0.0", names=("a.example",), certificate=Path("c"), key=Path("k")), "https://a.example:8080"),
    ],
)
def test_the_address_to_open_is_told(binding: Binding, address: str) -> None:
    assert binding.address() == address
