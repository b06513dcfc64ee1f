"""How the drill times a revoked key, and what its stand-in of a server sees of one with a bad certificate."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import datetime

import pytest


@pytest.fixture
def keys(load_from):
    return load_from("faults", "keys")


@pytest.fixture
def certificates(load_from):
    return load_from("faults", "certificates")


LOG = (
    b"2026-11-29 22:57:50,000 INFO the gateway listens on 127.0.0.1 port 8443\n"
    b"2026-11-29 22:57:51,250 WARNING refused from 127.0.0.1: 404 GET b'/admin'\n"
    b"2026-11-29 22:57:52,500 WARNING refused from 127.0.0.1: 401 POST b'/v1/fleet/pull-messages'\n"
    b"2026-11-29 22:57:55,000 WARNING refused from 127.0.0.1: 401 POST b'/v1/fleet/activate-node'\n"
)


def test_the_first_refusal_of_a_node_is_found_with_its_moment_and_a_stranger_s_is_none(keys):
    when, what = keys.first_refusal(LOG)
    assert when == datetime(2026, 11, 29, 22, 57, 52, 500_000).timestamp()
    assert what == "401 POST /v1/fleet/pull-messages"


def test_a_log_without_a_refused_node_holds_no_refusal(keys):
    assert keys.first_refusal(LOG[:140]) is None


@pytest.mark.parametrize(
    ("accepted", "refused", "well"), [(1.0, 2.0, True), (-1.5, 0.5, True), (1.0, 31.0, False), (3.0, 2.0, False)]
)
def test_a_key_is_cut_off_well_within_one_heartbeat_and_without_an_answer_after_the_first_refusal(
    keys, accepted, refused, well
):
    assert keys.well_cut_off(keys.CutOff(accepted, refused, refused + 1, "401")) is well


def test_what_a_site_s_log_says_of_the_server_is_the_last_it_wrote(keys, tmp_path):
    home = keys.SiteHome(tmp_path)
    assert keys.said(home) == "nothing said"
    home.audit.append("server.unreachable", why={"clock": "9 s ahead"})
    home.audit.append("server.unreachable", why={"node": "refused", "clock": "right"})
    home.audit.append("site.stopped", site="north")
    assert keys.said(home) == "clock: right; node: refused"


def asked(port, trusted, words):
    context = ssl.create_default_context(cadata=trusted)
    line = socket.create_connection(("127.0.0.1", port), 5)
    with line, context.wrap_socket(line, server_hostname="localhost") as channel:
        channel.sendall(words)
        return channel.recv(100)


def settled(value):
    end = time.monotonic() + 10
    while not value() and time.monotonic() < end:
        time.sleep(0.01)
    return value()


def test_the_stand_in_keeps_the_first_line_of_what_comes_through_tls(certificates, tmp_path):
    authority = certificates.Authority("a")
    with certificates.answering(*authority.sign(tmp_path)) as server:
        assert asked(server.port, authority.pem, b"POST /v1/fleet/x HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert server.came == ["POST /v1/fleet/x HTTP/1.1"]
    assert server.handshakes_failed == 0


def test_the_stand_in_gets_nothing_from_one_who_does_not_trust_it_and_counts_the_attempt(certificates, tmp_path):
    authority, other = certificates.Authority("a"), certificates.Authority("b")
    with certificates.answering(*authority.sign(tmp_path)) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            asked(server.port, other.pem, b"POST /v1/fleet/x HTTP/1.1\r\n\r\n")
        assert settled(lambda: server.handshakes_failed) == 1
    assert server.came == []


def test_what_arrived_is_counted_by_request_and_only_the_question_for_the_time_is_harmless(certificates):
    health, fleet = "GET /health HTTP/1.1", "POST /v1/fleet/activate-node HTTP/1.1"
    assert certificates.arrived([]) == "nothing arrived"
    assert certificates.arrived([health, fleet, health]) == f"what arrived: 2 x {health}, 1 x {fleet}"
    assert certificates.nothing_of_ours([health, health])
    assert not certificates.nothing_of_ours([health, fleet])
