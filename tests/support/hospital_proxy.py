"""A hospital's way out: a proxy with a password that finds names its sites cannot, and a device that may open TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import threading

USER = "it:s3cret"


class HospitalProxy:
    """Serves from a thread of its own, between ``with`` and its end.

    Args:
        name: Host that it alone finds.
        server: Address and port at which that host really is.
        shown: TLS with which the device shows itself to a site.
        trusting: TLS with which the device asks the server.
    """

    def __init__(self, name: str, server: tuple[str, int], shown: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
        self.name, self.server, self.shown, self.trusting = name, server, shown, trusting
        self.opens = False
        self.connected: list[str] = []
        self.read: list[str] = []
        self._live: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def address(self) -> str:
        """What belongs into ``HTTPS_PROXY``."""
        return f"http://{USER}@127.0.0.1:{self.port}"

    def __enter__(self) -> HospitalProxy:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    def open_tls(self, opens: bool) -> None:
        """Have the device open TLS or not from now on; what is connected is cut off."""
        self.opens = opens
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._live:
            writer.close()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        front = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        device = await asyncio.start_server(self._look_into, "127.0.0.1", 0, ssl=self.shown)
        self.port, self._device = (each.sockets[0].getsockname()[1] for each in (front, device))
        self._ready.set()
        await self._end.wait()
        front.close()
        device.close()
        self._cut()
        while self._live:
            await asyncio.sleep(0.01)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, where, _ = head[0].split()
        allowed = f"Proxy-Authorization: Basic {base64.b64encode(USER.encode()).decode()}"
        if allowed not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        elif (method, where) != ("CONNECT", f"{self.name}:{self.server[1]}"):
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        else:
            self.connected.append(where)
            there = await asyncio.open_connection(*(("127.0.0.1", self._device) if self.opens else self.server))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._pass((reader, writer), there)
        writer.close()

    async def _look_into(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*self.server, ssl=self.trusting, server_hostname=self.name)
        await self._pass((reader, writer), there, self.read)

    async def _pass(self, one: tuple, other: tuple, read: list[str] | None = None) -> None:
        writers = {one[1], other[1]}
        self._live |= writers
        ways = [asyncio.create_task(_copy(one[0], other[1], read)), asyncio.create_task(_copy(other[0], one[1], None))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for writer in writers:
            writer.close()
        self._live -= writers


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read: list[str] | None) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            if read is not None and piece.startswith(b"POST "):
                read.append(piece.split(b"\r\n")[0].decode("latin-1"))
            writer.write(piece)
            await writer.drain()
