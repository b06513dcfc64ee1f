"""People who look at one run: each opens the page, keeps its event stream, and fetches what the page fetches.

    python benchmarks/dashboard/viewers.py URL PAGE COOKIES OUT

COOKIES is a file with a line for each of them. Says ``ready`` when all pages are open; looks until its standard input
ends; then writes OUT as JSON. A viewer does what static/live.js and charts.js do: after a change it asks for the
sections that it has not, and when a round is over for the new points of the curves.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx

_TAG = re.compile(r"<[a-zA-Z][^>]*>")
_ATTRIBUTE = re.compile(r'([\w:-]+)="([^"]*)"')
RETRY_SECONDS = 1.0
TIMEOUT = 120.0


@dataclass
class Page:
    """What a run's page asks for, and what it holds.

    Attributes:
        stream: Its event stream.
        live: Where the sections come from.
        series: Where the points of its curves come from.
        parts: Digest of each section that it has.
        clock: The run's epoch and last round, as the page tells them.
        epoch: The epoch of the points that it has.
        done: The last round that it has points of; -1 before the first.
    """

    stream: str = ""
    live: str = ""
    series: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    clock: tuple[str, str] = ("", "")
    epoch: str = ""
    done: int = -1

    def read(self, text: str) -> None:
        """Take in a page, or sections of it."""
        for tag in _TAG.findall(text):
            told = {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(tag)}
            if "data-changes" in told:
                self.stream, self.live = told["data-changes"], told.get("hx-get", "")
                self.series = told.get("data-series", "")
            if "data-part" in told:
                self.parts[told["id"]] = told["data-part"]
            if told.get("id") == "clock":
                self.clock = (told["data-epoch"], told["data-done"])

    @property
    def sections_wanted(self) -> str:
        """Where the sections are that it has not."""
        return _with(self.live, have=".".join(self.parts.values()))

    @property
    def points_wanted(self) -> str:
        """Where the points are that it has not."""
        return _with(self.series, epoch=self.epoch, since=str(self.done + 1)) if self.epoch else self.series


class Viewer:
    """One person's browser."""

    def __init__(self, client: httpx.AsyncClient, path: str, cookie: str, told: dict[str, Any]) -> None:
        self._client, self._path, self._told, self._key = client, path, told, {"Cookie": cookie}
        self._page, self._news = Page(), asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.opened = asyncio.Event()
        self.mine: dict[str, Any] = {"events": [], "shown": {}}

    async def open(self) -> None:
        """Open the page with its curves and its stream."""
        self._page.read(await self.get(self._path, "page"))
        await self._points()
        self.tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._listen(self._page.stream))]
        await self.opened.wait()

    async def get(self, path: str, what: str) -> str:
        """Fetch a path as a browser does: compressed; note how long it took. Nothing where it fails."""
        begun, kind = time.perf_counter(), f"{what}: {_kind(path)}"
        try:
            answer = await self._client.get(path, headers=self._key)
        except httpx.HTTPError as error:
            self._told["trouble"][f"{type(error).__name__} {_kind(path)}"] += 1
            return ""
        self._told["fetched"][kind].append(time.perf_counter() - begun)
        self._told["bytes"][kind] += answer.num_bytes_downloaded
        self._told["status"][str(answer.status_code)] += 1
        if answer.status_code != 200:
            self._told["trouble"][f"{answer.status_code} {_kind(path)}"] += 1
            return ""
        return answer.text

    async def _keep(self) -> None:
        while True:
            await self._news.wait()
            # What changes while sections are fetched is fetched after them, once.
            self._news.clear()
            before = self._page.clock
            self._page.read(await self.get(self._page.sections_wanted, "sections"))
            if self._page.clock != before:
                await self._points()

    async def _points(self) -> None:
        text = await self.get(self._page.points_wanted, "points, all" if self._page.done < 0 else "points, new")
        if text:
            found = json.loads(text)
            self._page.epoch, self._page.done = found["epoch"], int(found["done"])
            self.mine["shown"].setdefault(self._page.done, time.time())

    async def _listen(self, path: str) -> None:
        while True:
            try:
                async with self._client.stream("GET", path, headers=self._key, timeout=10.0) as answer:
                    self.opened.set()
                    async for line in answer.aiter_lines():
                        if line == "event: change":
                            self.mine["events"].append(time.time())
                            self._news.set()
            except httpx.HTTPError:
                self._told["trouble"]["stream lost"] += 1
            await asyncio.sleep(RETRY_SECONDS)


async def look(url: str, path: str, cookies: list[str]) -> dict[str, Any]:
    """Look until standard input ends; return what was seen."""
    told: dict[str, Any] = {
        "fetched": defaultdict(list), "bytes": defaultdict(int), "status": defaultdict(int), "trouble": defaultdict(int)
    }  # fmt: skip
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT) as client:
        viewers = [Viewer(client, path, cookie, told) for cookie in cookies]
        await asyncio.gather(*(each.open() for each in viewers))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        late = await _until_input_ends()
        after = resource.getrusage(resource.RUSAGE_SELF)
        for each in viewers:
            for task in each.tasks:
                task.cancel()
        await asyncio.gather(*(task for each in viewers for task in each.tasks), return_exceptions=True)
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return told | {
        "viewers": [each.mine for each in viewers], "seconds": time.monotonic() - begun, "processor": seconds,
        "loop_late": late,
    }  # fmt: skip


async def _until_input_ends() -> list[float]:
    """Return by how much this process's own loop was late, seconds: what it adds to every figure."""
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    late = []
    while not ended.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.05)
        late.append(time.perf_counter() - begun - 0.05)
    return late


def _kind(path: str) -> str:
    return re.sub(r"\d+", "N", urlsplit(path).path)


def _with(path: str, **asked: str) -> str:
    parts = urlsplit(path)
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | asked)).geturl()


if __name__ == "__main__":
    where, page, cookies, out = sys.argv[1:]
    result = asyncio.run(look(where, page, Path(cookies).read_text().splitlines()))
    Path(out).write_text(json.dumps(result))
