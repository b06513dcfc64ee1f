"""How long a stranger may say nothing, and how many connections one address may hold, at the gateway and the pages.

uvicorn waits for ever for the first request of a connection, and counts the silent ones against everybody: a thousand
of them, which nobody needs a key for, would shut the door before every site. So each connection is counted from the
moment it is accepted, has a bounded time for its TLS handshake and for every request's header, and an address may hold
so many. A hospital network's many sites behind one address are why that number is large, and can be set at the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("popmi.connections")
OPEN_FILES = 8_192
"""Open files asked of the system at most: two for each connection, with room for others."""
OUT_OF_FILES_SECONDS = 0.5


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        each: Connections of one address, half of those the gateway takes at all.
        handshake_seconds: Seconds for the TLS handshake: a few round trips, also of a slow line.
        header_seconds: Seconds for the header of a request, from the begin of the connection or of the request.
    """

    each: int = 500
    handshake_seconds: float = 15.0
    header_seconds: float = 20.0


class Bounds:
    """Counts open connections by address.

    Args:
        each: Connections of one address; of one network of 64 bits where it is IPv6, which one customer has whole.
    """

    def __init__(self, each: int) -> None:
        self.each = each
        self._open: Counter[str] = Counter()
        self._told: set[str] = set()

    def take(self, address: str) -> Callable[[], None] | None:
        """Count one connection and return what ends its count, or None where the address holds too many."""
        place = _place(address)
        if self._open[place] >= self.each:
            if place not in self._told:
                self._told.add(place)
                log.warning("%s holds %d connections: no more are taken until some are closed", address, self.each)
            return None
        self._open[place] += 1
        left = [place]

        def release() -> None:
            # Once only: a connection ends in several ways.
            if left:
                self._release(left.pop())

        return release

    def _release(self, place: str) -> None:
        self._open[place] -= 1
        if self._open[place] <= self.each // 2:
            self._told.discard(place)
        if not self._open[place]:
            del self._open[place]


class PromptH11(H11Protocol):
    """HTTP as uvicorn speaks it, with a limit on the time until a request's header is whole."""

    release: Callable[[], None] | None = None
    header_seconds = ConnectionLimits.header_seconds
    _header_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Take what came; a header that is not whole yet gets no more time for its next bytes."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._expect_header()
        else:
            self._header_came()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the connection's place free."""
        self._header_came()
        super().connection_lost(exc)
        if self.release is not None:
            self.release()

    def _expect_header(self) -> None:
        if self._header_due is None:
            self._header_due = self.loop.call_later(self.header_seconds, self._too_late)

    def _header_came(self) -> None:
        if self._header_due is not None:
            self._header_due.cancel()
            self._header_due = None

    def _too_late(self) -> None:
        self._header_due = None
        # Not politely: who says nothing would not answer a goodbye either.
        self.transport.abort()


class BoundedServer(uvicorn.Server):
    """uvicorn that accepts by itself, so that a connection is counted and timed before it has said anything.

    Args:
        config: uvicorn's; its ``http`` must be ``PromptH11``.
        limits: What a connection may take.
    """

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self._limits, self._bounds = limits, Bounds(limits.each)
        self._accepting: list[asyncio.Task[None]] = []
        self._greeting: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept at the sockets that are given."""
        _allow_open_files()
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or []:
            listener.setblocking(False)
            listener.listen(self.config.backlog)
            self._accepting.append(asyncio.create_task(self._accept(listener)))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end as uvicorn does."""
        ending = [*self._accepting, *self._greeting]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await self._accepted(listener)
            except OSError as error:
                # Out of files, or the caller is gone already: the next one is served when there is room.
                log.warning("a connection could not be accepted: %s", error.strerror)
                await asyncio.sleep(OUT_OF_FILES_SECONDS)
                continue
            release = self._bounds.take(str(peer[0]))
            if release is None:
                connection.close()
                continue
            task = loop.create_task(self._greet(connection, release))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    @staticmethod
    async def _accepted(listener: socket.socket) -> tuple[socket.socket, Any]:
        return await asyncio.get_running_loop().sock_accept(listener)

    async def _greet(self, connection: socket.socket, release: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            made: Any = self.config.http_protocol_class
            protocol: PromptH11 = made(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            protocol.release, protocol.header_seconds = release, self._limits.header_seconds
            return protocol

        greeted = False
        try:
            # asyncio takes no time for a handshake where there is none.
            patience = None if self.config.ssl is None else self._limits.handshake_seconds
            await loop.connect_accepted_socket(make, connection, ssl=self.config.ssl, ssl_handshake_timeout=patience)
            greeted = True
        except OSError as error:
            # No TLS, no common version, silence, or gone: every scanner of the internet comes by.
            log.debug("no handshake: %s", error)
        finally:
            if not greeted:
                release()


def _place(address: str) -> str:
    if ":" not in address:
        return address
    whole = IPv6Address(address.partition("%")[0])
    return str(whole.ipv4_mapped or IPv6Network((whole, 64), strict=False))


def _allow_open_files() -> None:
    """Ask for as many open files as the connections may need; where the system gives fewer, those are what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
