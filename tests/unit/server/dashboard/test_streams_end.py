"""An event stream ends with the session that opened it, wherever that was ended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served_pages import reader, served
from signing_in import post, sign_in
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from server.centre import accounts, open_centre, sessions
from server.centre.people import Doer
from server.centre.sessions import SessionLimits
from server.dashboard import events
from server.dashboard.catalogue import FolderCatalogue
from server.dashboard.events import Watcher

BY = Doer("root", "terminal")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_SECONDS", 0.4)
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)


class Listening:
    """Reads one event stream in a thread, until it ends."""

    def __init__(self, client: httpx.Client) -> None:
        self.lines: list[str] = []
        self.opened, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._read, args=(client,))
        self.thread.start()
        assert self.opened.wait(20)

    def _read(self, client: httpx.Client) -> None:
        # A test that is over closes its browsers while they listen.
        with contextlib.suppress(httpx.HTTPError):
            with client.stream("GET", "/changes", headers={"Accept": "text/event-stream"}) as answer:
                for line in answer.iter_lines():
                    self.lines.append(line)
                    self.opened.set()
            self.ended.set()
        self.opened.set()


@contextmanager
def signed_in(binding, name: str = "vera") -> Iterator[httpx.Client]:
    with reader(binding) as client:
        assert sign_in(client, name).status_code == 303
        yield client


def test_signing_out_ends_the_stream_at_once(centre: Engine, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No ping would find it: only being told does.
    monkeypatch.setattr(events, "PING_SECONDS", 60.0)
    with served(centre, runs) as place, signed_in(place) as client, signed_in(place) as other:
        mine, theirs = Listening(client), Listening(other)
        began = time.monotonic()
        post(client, "/logout")
        assert mine.ended.wait(5)
        assert time.monotonic() - began < 3
        assert mine.lines[-3:] == ["event: ended", "data: ", ""]
        # The same account in another browser is not signed out.
        assert not theirs.ended.wait(0.5)


@pytest.mark.parametrize("act", ["disable", "remove", "set_password", "end_all", "expire"])
def test_what_is_done_elsewhere_ends_the_stream_at_the_next_ping(
    database: str, centre: Engine, runs: Path, act: str
) -> None:
    """As another process of the pages, or the command line, does it: through the database alone."""
    elsewhere = open_centre(database)
    acts: dict[str, Callable[[], object]] = {
        "disable": lambda: accounts.disable(elsewhere, "vera", BY),
        "remove": lambda: accounts.remove(elsewhere, "vera", BY),
        "set_password": lambda: accounts.set_password(elsewhere, "vera", "seven quiet green hills", BY),
        "end_all": lambda: sessions.end_all(elsewhere, accounts.find(elsewhere, "vera"), BY),
        "expire": lambda: time.sleep(1.5),
    }
    limits = SessionLimits(whole_seconds=1.5) if act == "expire" else SessionLimits()
    with served(centre, runs, limits=limits) as place, signed_in(place) as client:
        stream = Listening(client)
        acts[act]()
        assert stream.ended.wait(5)
        assert "event: ended" in stream.lines
        assert client.get("/changes", headers={"Accept": "text/event-stream"}).status_code == 401
    elsewhere.dispose()


def test_a_new_password_ends_the_streams_of_other_browsers_at_once(
    centre: Engine, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PING_SECONDS", 60.0)
    with served(centre, runs) as place, signed_in(place) as client, signed_in(place) as other:
        stream = Listening(other)
        better = {"password": "seven quiet green hills", "again": "seven quiet green hills"}
        post(client, "/account/password", {"current": "correct horse battery"} | better)
        assert stream.ended.wait(5)


def test_nobody_listens_without_signing_in(centre: Engine, runs: Path) -> None:
    with served(centre, runs) as place, reader(place) as stranger:
        for path in ("/changes", "/runs/x/changes"):
            answer = stranger.get(path, headers={"Accept": "text/event-stream"})
            assert (answer.status_code, answer.headers["content-type"]) == (401, "text/plain; charset=utf-8")


def test_a_centre_that_is_away_ends_no_stream(tmp_path: Path) -> None:
    """It carries no figures, and what it has a page ask for is refused meanwhile."""
    asked: list[int] = []

    def away(_: Collection[str]) -> Collection[str]:
        asked.append(1)
        raise OperationalError("SELECT", {}, Exception("away"))

    async def listen() -> list[str]:
        watcher = Watcher(FolderCatalogue(tmp_path), away)
        task = asyncio.create_task(watcher.run())
        heard: list[str] = []
        async for event in watcher.stream(None, "", "abc"):
            heard.append(event)
            if len(heard) == 5:
                break
        task.cancel()
        return heard

    heard = asyncio.run(asyncio.wait_for(listen(), 20))
    assert asked
    assert not any("ended" in event for event in heard)


def test_a_session_that_ended_is_forgotten_with_its_last_stream(tmp_path: Path) -> None:
    async def listen() -> None:
        watcher = Watcher(FolderCatalogue(tmp_path), lambda asked: asked)
        task = asyncio.create_task(watcher.run())
        await asyncio.sleep(0)
        streams = [watcher.stream(None, "", "abc") for _ in range(2)]
        for stream in streams:
            await anext(stream)
        watcher.end(["abc", "nobody's"])
        for stream in streams:
            assert [event async for event in stream][-1].startswith("event: ended")
        assert watcher._ended == set()
        assert not watcher._open
        task.cancel()

    asyncio.run(asyncio.wait_for(listen(), 20))


def test_an_error_that_nobody_foresaw_does_not_end_live_pages(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    class Ill(FolderCatalogue):
        """Cannot say what there is, twice."""

        asked = 0

        def fingerprints(self) -> dict[str, str]:
            self.asked += 1
            if self.asked in (2, 3):
                raise ValueError("odd")
            return {"run": "new" if self.asked > 3 else "old"}

    async def watch() -> list[str]:
        watcher = Watcher(Ill(tmp_path))
        task = asyncio.create_task(watcher.run())
        stream = watcher.stream("run", "")
        told = [await asyncio.wait_for(anext(stream), 10) for _ in range(2)]
        while len([item for item in told if "change" in item]) < 2:
            told.append(await asyncio.wait_for(anext(stream), 10))
        await stream.aclose()
        task.cancel()
        return told

    with caplog.at_level("ERROR", "popmi.dashboard"):
        asyncio.run(watch())
    # Two troubles of one cause are one line.
    assert [item.message for item in caplog.records if "cannot be looked at for news" in item.message] == [
        "the records cannot be looked at for news; looked at again in 0.05 s"
    ]
