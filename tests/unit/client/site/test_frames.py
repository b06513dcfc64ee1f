"""Pieces between gate and worker: whole or not at all."""

from __future__ import annotations

import socket
import threading

import pytest

from client.site.frames import receive, send


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_pieces_arrive_as_they_were_sent_also_empty_and_large_ones(pair):
    one, other = pair
    pieces = [b"", b"a", bytes(range(256)) * 20_000]
    sender = threading.Thread(target=send, args=(one, *pieces))
    sender.start()
    assert receive(other, 3) == pieces
    sender.join()


@pytest.mark.parametrize("part", [b"", b"\0\0\0", b"\0\0\0\0\0\0\0\5abc"])
def test_an_end_before_all_has_come_is_none(pair, part):
    one, other = pair
    one.sendall(part)
    one.close()
    assert receive(other, 1) is None
