"""What gate and worker say to each other over a pair of sockets: pieces of bytes with their lengths before them."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct(">Q")


def send(channel: socket.socket, *pieces: bytes) -> None:
    """Send pieces, each with its length.

    Raises:
        OSError: If the other side is gone.
    """
    for piece in pieces:
        channel.sendall(_LENGTH.pack(len(piece)))
        channel.sendall(piece)


def receive(channel: socket.socket, count: int) -> list[bytes] | None:
    """Return ``count`` pieces; None if the other side ended before all had come."""
    pieces: list[bytes] = []
    for _ in range(count):
        if (head := _exactly(channel, _LENGTH.size)) is None:
            return None
        if (piece := _exactly(channel, _LENGTH.unpack(head)[0])) is None:
            return None
        pieces.append(bytes(piece))
    return pieces


def _exactly(channel: socket.socket, size: int) -> bytearray | None:
    got = bytearray(size)
    view, done = memoryview(got), 0
    while done < size:
        try:
            read = channel.recv_into(view[done:], min(size - done, 1 << 20))
        except ConnectionResetError:
            return None
        if read == 0:
            return None
        done += read
    return got
