"""Tell open pages that a run changed: one watcher for all viewers, server-sent events to each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection

from sqlalchemy.exc import SQLAlchemyError

from server.dashboard.catalogue import Catalogue, fingerprint
from server.store import RunSummary

log = logging.getLogger("popmi.dashboard")
POLL_SECONDS = 0.3
PING_SECONDS = 3.0


class Watcher:
    """Looks at the records every ``POLL_SECONDS`` while somebody watches, off the event loop.

    Args:
        catalogue: The records.
        alive: Returns those of some sessions' digests that are still let in; None where nobody signs in.
    """

    def __init__(self, catalogue: Catalogue, alive: Callable[[Collection[str]], Collection[str]] | None = None) -> None:
        self._catalogue, self._alive = catalogue, alive
        self._open: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._versions: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._viewers = 0
        self._stopping = False
        self._trouble = ""

    async def run(self) -> None:
        """Poll until cancelled."""
        self._loop = asyncio.get_running_loop()
        asked = self._loop.time()
        while True:
            if self._viewers or self._stopping:
                await self._look()
            if self._open and self._loop.time() - asked >= PING_SECONDS:
                asked = self._loop.time()
                await self._ask_who_is_alive()
            await asyncio.sleep(POLL_SECONDS)

    def end(self, sessions: Collection[str]) -> None:
        """End every stream of some sessions, now; for any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_end, sessions)

    def stop(self) -> None:
        """End every stream at the next look, so that the server can close; safe in a signal handler."""
        self._stopping = True

    def fresh(self, key: str | None) -> str:
        """Look now and return a short text that changes with a run, or with any run (None); for any thread."""
        return _version(self._catalogue.fingerprints(), key)

    async def stream(self, key: str | None, seen: str, session: str = "") -> AsyncIterator[str]:
        """Yield a ``change`` event for each new version, a ``ping`` while nothing happens, ``ended`` with the session.

        Args:
            key: The run, None for all.
            seen: The version that the page shows.
            session: Digest of the session or token that asks; empty where nobody signs in.
        """
        self._viewers += 1
        self._open.update([session] if session else [])
        try:
            await self._look()
            yield "retry: 1000\n\n"
            while not self._stopping and session not in self._ended:
                version = _version(self._versions, key)
                if version != seen:
                    seen = version
                    yield f"event: change\nid: {version}\ndata: {version}\n\n"
                elif not await self._wait(key, seen, session):
                    yield "event: ping\ndata: \n\n"
            if session in self._ended:
                yield "event: ended\ndata: \n\n"
        finally:
            self._viewers -= 1
            self._leave(session)

    async def _wait(self, key: str | None, seen: str, session: str) -> bool:
        def due() -> bool:
            return self._stopping or session in self._ended or _version(self._versions, key) != seen

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(due), PING_SECONDS)
                return True
        return False

    def _leave(self, session: str) -> None:
        if session:
            self._open[session] -= 1
            if self._open[session] <= 0:
                del self._open[session]
                self._ended.discard(session)

    def _begin_to_end(self, sessions: Collection[str]) -> None:
        task = asyncio.ensure_future(self._end(sessions))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, sessions: Collection[str]) -> None:
        self._ended.update(set(sessions) & self._open.keys())
        async with self._changed:
            self._changed.notify_all()

    async def _ask_who_is_alive(self) -> None:
        asked = frozenset(self._open)
        if self._alive is None:
            return
        try:
            alive = await asyncio.to_thread(self._alive, asked)
        except SQLAlchemyError as error:
            # A stream only says that something changed; what did is asked with the session, and refused meanwhile.
            log.warning("the centre does not say who is signed in: %s", type(error).__name__)
            return
        await self._end(asked - frozenset(alive))

    async def _look(self) -> None:
        try:
            versions = await asyncio.to_thread(self._catalogue.fingerprints)
        except Exception as error:
            # Whatever it is, pages that are open must hear of what changes after it; each cause is told once.
            if (cause := f"{type(error).__name__}: {error}") != self._trouble:
                log.exception("the records cannot be looked at for news; looked at again in %s s", POLL_SECONDS)
                self._trouble = cause
            return
        self._trouble = ""
        if versions != self._versions or self._stopping:
            self._versions = versions
            async with self._changed:
                self._changed.notify_all()


def version_of(run: RunSummary) -> str:
    """Return the text that a watcher gives a run as it is held; another one is news."""
    return _version({"": fingerprint(run.revision, run.status, run.heartbeat)}, "")


def _version(versions: dict[str, str], key: str | None) -> str:
    text = versions.get(key, "gone") if key is not None else str(sorted(versions.items()))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
