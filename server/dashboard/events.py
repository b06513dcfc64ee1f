"""Tell open pages that a run changed: one watcher for all viewers, server-sent events to each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

from server.dashboard.catalogue import Catalogue

POLL_SECONDS = 0.3
PING_SECONDS = 3.0


class Watcher:
    """Looks at the records every ``POLL_SECONDS`` while somebody watches, off the event loop."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._versions: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._viewers = 0
        self._stopping = False

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            if self._viewers or self._stopping:
                await self._look()
            await asyncio.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End every stream at the next look, so that the server can close; safe in a signal handler."""
        self._stopping = True

    def fresh(self, key: str | None) -> str:
        """Look now and return a short text that changes with a run, or with any run (None); for any thread."""
        return _version(self._catalogue.fingerprints(), key)

    async def stream(self, key: str | None, seen: str) -> AsyncIterator[str]:
        """Yield a ``change`` event for each new version and a ``ping`` while nothing happens."""
        self._viewers += 1
        try:
            await self._look()
            yield "retry: 1000\n\n"
            while not self._stopping:
                version = _version(self._versions, key)
                if version != seen:
                    seen = version
                    yield f"event: change\nid: {version}\ndata: {version}\n\n"
                elif not await self._wait(key, seen):
                    yield "event: ping\ndata: \n\n"
        finally:
            self._viewers -= 1

    async def _wait(self, key: str | None, seen: str) -> bool:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                waiting = self._changed.wait_for(lambda: self._stopping or _version(self._versions, key) != seen)
                await asyncio.wait_for(waiting, PING_SECONDS)
                return True
        return False

    async def _look(self) -> None:
        versions = await asyncio.to_thread(self._catalogue.fingerprints)
        if versions != self._versions or self._stopping:
            self._versions = versions
            async with self._changed:
                self._changed.notify_all()


def _version(versions: dict[str, str], key: str | None) -> str:
    text = versions.get(key, "gone") if key is not None else str(sorted(versions.items()))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
