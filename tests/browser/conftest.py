"""A real chromium on the real page server; every page is watched for errors and for requests to elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (popmi[dev])")

SUPPORT = Path(__file__).parents[1] / "support"
POPMI = "from popmi_core.cli.main import app; app()"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POPMI_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}


class PageServer:
    """`popmi serve` as its own process, on a port that stays its own over restarts.

    Args:
        runs: The folder of runs.
        words: Further words of the command.
    """

    def __init__(self, runs: Path, *words: str) -> None:
        self.runs, self.words = runs, words
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", POPMI, "serve", str(self.runs), "--port", str(self.port), *self.words]
        self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=1):
                    return
            except (urllib.error.URLError, TimeoutError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=10)


@pytest.fixture(scope="session")
def chromium() -> Iterator[playwright.Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the browser tests need chromium: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def believable() -> ModuleType:
    spec = importlib.util.spec_from_file_location("believable_run", SUPPORT / "believable_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[PageServer]:
    """The page server over an empty folder of runs."""
    runs = tmp_path / "runs"
    runs.mkdir()
    server = PageServer(runs)
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()


@pytest.fixture
def browse(chromium: playwright.Browser) -> Iterator[Callable[..., playwright.Page]]:
    """Return a function that opens a page; at the end none may have complained or asked elsewhere."""
    contexts: list[playwright.BrowserContext] = []
    complaints: list[str] = []

    def complain(message: playwright.ConsoleMessage) -> None:
        # A lost connection is reported by the browser itself; losing it is part of a test.
        if "ERR_CONNECTION_REFUSED" not in message.text and "ERR_INCOMPLETE_CHUNKED" not in message.text:
            complaints.append(f"{message.type}: {message.text}")

    def watch(request: playwright.Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "file://")):
            complaints.append(f"request to {request.url}")

    def open_page(url: str, **options: object) -> playwright.Page:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", watch)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
