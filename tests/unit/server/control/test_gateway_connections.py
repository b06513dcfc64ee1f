"""Silent strangers at the gateway's port: each has little time, each address few connections, and nobody else waits."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest
from fake_superlink import FakeSuperLink, behind

from server import connections
from server.connections import BoundedServer, Bounds, ConnectionLimits
from server.control import gateway
from server.control.gateway import serve

HERE = "127.0.0.1"
# The whole 127.0.0.0/8 is this machine: an address of a neighbour.
NEIGHBOUR = "127.0.0.2"
SOON = 20.0
LIMITS = ConnectionLimits(each=3, handshake_seconds=1.5, header_seconds=1.5)
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Served:
    """A gateway that serves in a thread, and callers of it."""

    def __init__(self, home):
        self.home, self.servers, self.ready = home, [], threading.Event()
        with socket.socket() as free:
            free.bind((HERE, 0))
            self.port = free.getsockname()[1]

    def connect(self, address=HERE):
        return socket.create_connection((HERE, self.port), timeout=SOON, source_address=(address, 0))

    def secured(self, address=HERE):
        context = ssl.create_default_context(cafile=str(self.home.ca))
        return context.wrap_socket(self.connect(address), server_hostname="localhost")

    def asks(self, address=HERE):
        """Return whether the gateway answers a caller from an address."""
        with contextlib.suppress(OSError), self.secured(address) as caller:
            return answers(caller)
        return False

    def until_it_answers(self):
        end = time.monotonic() + SOON
        while not self.asks():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture
def serving(home, monkeypatch):
    """Return a function that serves the gateway under limits."""
    made = Served(home)
    threads = []

    class Server(BoundedServer):
        def __init__(self, config, limits):
            super().__init__(config, limits)
            made.servers.append(self)

    monkeypatch.setattr(gateway, "BoundedServer", Server)

    def begin(limits=LIMITS):
        options = {"host": HERE, "port": made.port, "certificate": home.certificate, "key": home.key}
        threads.append(
            threading.Thread(
                target=serve,
                args=(behind(FakeSuperLink()),),
                kwargs={**options, "limits": limits, "started": made.ready.set},
            )
        )
        threads[0].start()
        assert made.ready.wait(SOON)
        return made

    yield begin
    for server in made.servers:
        server.should_exit = True
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def answers(caller, request=GET):
    """Send a request and read its whole answer; True when it is the one of a gateway that is well."""
    caller.sendall(request)
    got = b""
    while not got.endswith(b"\r\n\r\nok"):
        piece = caller.recv(1000)
        if not piece:
            return False
        got += piece
    return got.startswith(b"HTTP/1.1 200")


def is_closed(caller):
    """Wait for the other end to hang up; True when it did."""
    try:
        return caller.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_that_never_speak_tls_are_closed_and_give_their_places_free(serving):
    served = serving()
    silent = [served.connect() for _ in range(LIMITS.each)]
    # All places of this address are taken: one more is turned away, a neighbour is not.
    assert not served.asks()
    assert served.asks(NEIGHBOUR)
    assert all(is_closed(caller) for caller in silent)
    served.until_it_answers()


def test_connections_that_send_no_request_are_closed_and_give_their_places_free(serving):
    served = serving()
    silent = [served.secured() for _ in range(LIMITS.each)]
    assert served.asks(NEIGHBOUR)
    assert all(is_closed(caller) for caller in silent)
    served.until_it_answers()


def test_a_header_that_never_ends_gets_no_more_time_for_its_next_bytes(serving):
    served = serving()
    with served.secured() as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\n")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + SOON:
                caller.sendall(b"X-More: 1\r\n")
                time.sleep(0.05)
        assert time.monotonic() < begun + SOON


def test_a_second_header_that_never_ends_is_no_different(serving):
    served = serving()
    with served.secured() as caller:
        assert answers(caller)
        # Begun, it is no longer an idle connection that may be kept open.
        caller.sendall(b"GET /health")
        assert is_closed(caller)


def test_a_caller_who_asks_again_and_again_keeps_his_connection(serving):
    served = serving()
    with served.secured() as caller:
        for _ in range(8):
            assert answers(caller)
            time.sleep(LIMITS.header_seconds / 6)


def test_a_body_may_take_longer_than_a_header(serving):
    served = serving()
    with served.secured() as caller:
        caller.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        for letter in b"abcdef":
            time.sleep(LIMITS.header_seconds / 3)
            caller.sendall(bytes([letter]))
        assert caller.recv(1000).startswith(b"HTTP/1.1 200")


def test_silent_strangers_of_one_address_do_not_shut_the_gateway(serving):
    served = serving(ConnectionLimits(each=30, handshake_seconds=SOON, header_seconds=SOON))
    silent = [served.connect() for _ in range(15)] + [served.secured() for _ in range(15)]
    for _ in range(3):
        assert served.asks(NEIGHBOUR)
    for caller in silent:
        caller.close()
    served.until_it_answers()


def test_an_address_is_counted_by_what_it_has_open(caplog):
    bounds = Bounds(2)
    first, second = bounds.take("192.0.2.1"), bounds.take("192.0.2.1")
    assert bounds.take("192.0.2.1") is None
    assert bounds.take("192.0.2.1") is None
    assert bounds.take("192.0.2.2") is not None
    assert len(caplog.records) == 1
    assert "192.0.2.1 holds 2 connections" in caplog.text
    first()
    # A connection ends in several ways, and counts once.
    first()
    assert bounds.take("192.0.2.1") is not None
    assert bounds.take("192.0.2.1") is None
    second()
    assert len(caplog.records) == 2


def test_nothing_is_remembered_of_an_address_that_is_gone():
    bounds = Bounds(2)
    bounds.take("192.0.2.1")()
    assert not bounds._open


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True), ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True), ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)  # fmt: skip
def test_one_customers_whole_network_is_one_address(one, other, same):
    bounds = Bounds(1)
    assert bounds.take(one) is not None
    assert (bounds.take(other) is None) == same


def test_out_of_open_files_the_gateway_waits_and_goes_on(serving, monkeypatch, caplog):
    monkeypatch.setattr(connections, "OUT_OF_FILES_SECONDS", 0.01)
    failing, accepted = [OSError(24, "Too many open files")] * 3, BoundedServer._accepted

    async def fails_at_first(listener):
        if failing:
            raise failing.pop()
        return await accepted(listener)

    monkeypatch.setattr(BoundedServer, "_accepted", staticmethod(fails_at_first))
    assert serving().asks()
    assert "Too many open files" in caplog.text


def test_room_for_open_files_is_asked_for_and_never_taken_away(monkeypatch):
    asked = []
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    connections._allow_open_files()
    infinity = connections.resource.RLIM_INFINITY
    for now in ((1024, infinity), (100_000, infinity), (infinity, infinity)):
        limits["now"] = now
        connections._allow_open_files()
    assert asked == [(4096, 4096), (connections.OPEN_FILES, infinity)]
