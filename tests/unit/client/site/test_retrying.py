"""After what a node asks again (client/site/retrying.py)."""

from __future__ import annotations

import os
import signal
import socket
import threading

import httpx
import pytest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supernode import fleet_http_connection as connection

from client.site import retrying
from client.site.retrying import LastingHeartbeats, ask_again, asking_again
from popmi_core.errors import SetupError

BROKEN = "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"
SLOW = "_ssl.c:989: The handshake operation timed out"
FORGED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate"


@pytest.mark.parametrize("error", [httpx.ConnectError(BROKEN), httpx.WriteError(BROKEN), httpx.ConnectTimeout(SLOW)])
def test_a_connection_that_broke_off_inside_tls_is_tried_again_and_flower_alone_gives_it_up(error):
    assert retrying._flowers_invoker().should_giveup(error)
    assert not asking_again().should_giveup(error)


def test_a_forged_certificate_and_a_question_that_means_nothing_are_given_up():
    request = httpx.Request("POST", "https://gateway")
    senseless = httpx.HTTPStatusError("", request=request, response=httpx.Response(400, request=request))
    for error in (httpx.ConnectError(FORGED), senseless):
        assert asking_again().should_giveup(error)


def test_a_server_that_ends_in_the_handshake_is_met_with_an_error_that_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up():
            met, _ = listening.accept()
            met.recv(10)
            met.close()

        ending = threading.Thread(target=hang_up)
        ending.start()
        with pytest.raises(httpx.TransportError) as caught:
            httpx.post(f"https://127.0.0.1:{listening.getsockname()[1]}/", timeout=10)
        ending.join()
    assert not asking_again().should_giveup(caught.value)


def answered(status):
    def beat():
        request = httpx.Request("POST", "https://gateway")
        raise httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))

    return beat


@pytest.mark.parametrize("status", [408, 429, 500])
def test_a_heartbeat_that_is_not_taken_is_sent_again_and_flower_alone_sends_none_any_more(status):
    with pytest.raises(httpx.HTTPStatusError):
        HeartbeatSender(answered(status)).heartbeat_fn()
    assert LastingHeartbeats(answered(status)).heartbeat_fn() is False
    assert LastingHeartbeats(lambda: True).heartbeat_fn() is True


def test_a_node_that_the_server_does_not_know_ends(monkeypatch):
    told = []
    monkeypatch.setattr(os, "kill", lambda process, number: told.append((process, number)))

    def unknown():
        raise RuntimeError("The SuperLink does not recognize this SuperNode.")

    assert LastingHeartbeats(unknown).heartbeat_fn() is False
    assert told == [(os.getpid(), signal.SIGINT)]


def test_the_node_is_given_both_and_another_flower_is_refused(monkeypatch):
    for name in ("make_simple_http_retry_invoker", "HeartbeatSender"):
        monkeypatch.setattr(connection, name, getattr(connection, name))
    ask_again()
    assert connection.make_simple_http_retry_invoker is asking_again
    assert connection.HeartbeatSender is LastingHeartbeats
    monkeypatch.delattr(connection, "HeartbeatSender")
    with pytest.raises(SetupError, match=r"expected flwr 1\.41"):
        ask_again()
