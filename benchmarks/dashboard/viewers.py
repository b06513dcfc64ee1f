"""People who look at one run: each opens the page, keeps its event stream, and fetches what the page fetches.

    python benchmarks/dashboard/viewers.py URL PAGE COOKIES OUT

COOKIES is a file with a line for each of them. Says ``ready`` when all pages are open; looks until its standard input
ends; then writes OUT as JSON. What a page fetches is read from its HTML: parts that htmx asks for with ``load`` or at
``popmi:change``, and the series of its curves.
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
_ROUNDS = re.compile(r'"rounds": ?\[([\d, ]*)\]')
RETRY_SECONDS = 1.0
TIMEOUT = 120.0


@dataclass
class Page:
    """What a page asks for by itself.

    Attributes:
        stream: Its event stream.
        once: Fetched when it is open.
        each: Fetched then and after every change.
        series: Its curves: like ``each``, but from the newest known round on.
    """

    stream: str = ""
    once: list[str] = field(default_factory=list)
    each: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)


def read(text: str) -> Page:
    """Return what a page's HTML has a browser fetch."""
    page = Page()
    for tag in _TAG.findall(text):
        told = {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(tag)}
        trigger = told.get("hx-trigger", "")
        page.stream = told.get("data-changes", page.stream)
        if "hx-get" in told and "popmi:change" in trigger:
            page.each.append(told["hx-get"])
        elif "hx-get" in told and "load" in trigger:
            page.once.append(told["hx-get"])
        if "data-series" in told:
            page.series.append(told["data-series"])
    return page


class Viewer:
    """One person's browser."""

    def __init__(self, client: httpx.AsyncClient, path: str, cookie: str, told: dict[str, Any]) -> None:
        self._client, self._path, self._told, self._key = client, path, told, {"Cookie": cookie}
        self._marks: dict[str, str] = {}
        self._wake: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.opened = asyncio.Event()
        self.mine: dict[str, Any] = {"events": [], "shown": {}}

    async def open(self) -> None:
        """Open the page with all its parts."""
        page = read(await self.get(self._path, "page"))
        for path in page.once:
            await self.get(path, "part, once")
        for path in (*page.each, *page.series):
            wake = asyncio.Event()
            self._wake.append(wake)
            self.tasks.append(asyncio.create_task(self._keep(path, wake, series=path in page.series)))
        self.tasks.append(asyncio.create_task(self._listen(page.stream)))
        await self.opened.wait()

    async def get(self, path: str, what: str) -> str:
        """Fetch a path as a browser does: compressed, and not again what it has; note how long it took."""
        headers = self._key | ({"If-None-Match": self._marks[path]} if path in self._marks else {})
        begun, kind = time.perf_counter(), f"{what}: {_kind(path)}"
        try:
            answer = await self._client.get(path, headers=headers)
        except httpx.HTTPError as error:
            self._told["trouble"][f"{type(error).__name__} {_kind(path)}"] += 1
            return ""
        self._told["fetched"][kind].append(time.perf_counter() - begun)
        self._told["bytes"][kind] += answer.num_bytes_downloaded
        self._told["status"][str(answer.status_code)] += 1
        if answer.status_code not in (200, 304):
            self._told["trouble"][f"{answer.status_code} {_kind(path)}"] += 1
        if "etag" in answer.headers and answer.status_code == 200:
            self._marks[path] = answer.headers["etag"]
        return answer.text

    async def _keep(self, path: str, wake: asyncio.Event, *, series: bool) -> None:
        last = 0
        while True:
            # What changes while a part is fetched is fetched after it, once.
            wake.clear()
            text = await self.get(_since(path, last) if series else path, "series" if series else "part")
            newest = max(_rounds(text), default=0)
            last = max(last, newest)
            if newest:
                self.mine["shown"].setdefault(newest, time.time())
            await wake.wait()

    async def _listen(self, path: str) -> None:
        while True:
            try:
                async with self._client.stream("GET", path, headers=self._key, timeout=10.0) as answer:
                    self.opened.set()
                    async for line in answer.aiter_lines():
                        if line == "event: change":
                            self.mine["events"].append(time.time())
                            for wake in self._wake:
                                wake.set()
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


def _since(path: str, last: int) -> str:
    parts = urlsplit(path)
    asked = dict(parse_qsl(parts.query)) | ({"since": str(last)} if last else {})
    return parts._replace(query=urlencode(asked)).geturl()


def _rounds(text: str) -> list[int]:
    """Return the rounds that the curves in an answer are drawn over."""
    found = _ROUNDS.search(html.unescape(text))
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []


if __name__ == "__main__":
    where, page, cookies, out = sys.argv[1:]
    result = asyncio.run(look(where, page, Path(cookies).read_text().splitlines()))
    Path(out).write_text(json.dumps(result))
