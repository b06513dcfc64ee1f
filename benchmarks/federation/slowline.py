"""A slow line in front of the gateway: a proxy that delays, throttles and stalls what passes, where the kernel has no
netem. TLS goes through unopened.

    python benchmarks/federation/slowline.py LISTEN_PORT TARGET_PORT --kbit 1000 --delay 0.1 --loss 0.02
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

SEGMENT = 1460
"""Bytes of a TCP segment on an Ethernet."""


class Line:
    """One direction of a line that all its connections share.

    Args:
        bytes_per_second: What it carries.
        delay: Seconds each way.
        loss: Share of segments lost; each costs its connection a round trip more, in which nothing behind it arrives.
        seed: Of the losses.
    """

    def __init__(self, bytes_per_second: float, delay: float, loss: float, seed: int) -> None:
        self.rate, self.delay, self.loss, self.random = bytes_per_second, delay, loss, random.Random(seed)
        self.free = 0.0

    def arrival(self, size: int, earliest: float, now: float) -> float:
        """Return when ``size`` bytes that are handed in now arrive; not before ``earliest``, the connection's last."""
        self.free = max(self.free, now) + size / self.rate
        lost = sum(self.random.random() < self.loss for _ in range(-(-size // SEGMENT)))
        return max(self.free + self.delay + 2 * self.delay * lost, earliest)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until one end closes."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sender = asyncio.create_task(_deliver(queue, writer))
        earliest = 0.0
        try:
            while data := await reader.read(4 * SEGMENT):
                earliest = self.arrival(len(data), earliest, time.monotonic())
                await queue.put((earliest, data))
        except ConnectionError:
            pass
        await queue.put((earliest, b""))
        await sender


async def _deliver(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    while True:
        when, data = await queue.get()
        await asyncio.sleep(max(0.0, when - time.monotonic()))
        try:
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()
        except ConnectionError:
            return


async def serve(listen: int, target: int, *, bytes_per_second: float, delay: float, loss: float) -> None:
    """Be the line."""
    up, down = (Line(bytes_per_second, delay, loss, seed) for seed in (0, 1))

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(up.carry(reader, back), down.carry(there, writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", listen)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listen", type=int)
    parser.add_argument("target", type=int)
    parser.add_argument("--kbit", type=float, default=1000.0, help="each way")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds each way")
    parser.add_argument("--loss", type=float, default=0.02)
    given = parser.parse_args()
    speed = given.kbit * 1000 / 8
    asyncio.run(serve(given.listen, given.target, bytes_per_second=speed, delay=given.delay, loss=given.loss))


if __name__ == "__main__":
    main()
