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
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import believable_federation
import pytest
import throwaway_postgres
from sqlalchemy import create_engine, text

from server.centre import accounts, open_centre
from server.centre.people import Doer
from server.store import RunWriter

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


@dataclass
class Federation:
    """The pages of a server with two finished runs, seven sites, an audit log and three people.

    Attributes:
        pages: The page server.
        runs: The folder of runs.
        centre: The centre's file or database URL.
        browse: Opens a page in a browser of its own.
        cookies: What a browser keeps of each role's session, by role.
    """

    pages: PageServer
    runs: Path
    centre: str | Path
    browse: Callable[..., playwright.Page]
    cookies: dict[str, object] = field(default_factory=dict)

    def open(self, path: str = "/", role: str = "viewer", **options: object) -> playwright.Page:
        """Open a page as somebody of this role."""
        if role not in self.cookies:
            page = self.browse(f"{self.pages.url}/login")
            self.sign_in(page, role)
            self.cookies[role] = page.context.storage_state()
        return self.browse(self.pages.url + path, storage_state=self.cookies[role], **options)

    def sign_in(self, page: playwright.Page, name: str, password: str | None = None) -> None:
        """Fill in the page for signing in and send it; every role has an account of its name."""
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password or secret_of(name))
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_load_state()


def secret_of(name: str) -> str:
    """Return the password of an account."""
    return f"the {name} walks along the river"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL for the tests of this process."""
    if throwaway_postgres.programs() is None:
        pytest.skip("PostgreSQL's programs are not installed here")
    with throwaway_postgres.running() as address:
        yield address


@pytest.fixture(scope="module")
def own_database() -> Iterator[str]:
    """A PostgreSQL for one module, which no other test empties."""
    if throwaway_postgres.programs() is None:
        pytest.skip("PostgreSQL's programs are not installed here")
    with throwaway_postgres.running() as address:
        yield address


@pytest.fixture
def federation(
    request: pytest.FixtureRequest, tmp_path: Path, browse: Callable[..., playwright.Page]
) -> Iterator[Federation]:
    """A server's pages; its records and its centre are files, or with the parameter ``postgresql`` in that."""
    database: str | None = None
    if getattr(request, "param", "sqlite") == "postgresql":
        database = request.getfixturevalue("postgres")
        emptied(database)
    runs, centre = believable_federation.build(tmp_path, time.time(), database=database)
    words = ["--centre", str(centre), "--runs", str(runs)]
    if database is not None:
        words += ["--database", database]
        write_records(database, runs)
    engine = open_centre(centre)
    for role in ("viewer", "operator", "admin"):
        accounts.add(engine, role, role, secret_of(role), Doer("root", "terminal"))
    engine.dispose()
    server = PageServer(runs, *words)
    server.start()
    yield Federation(server, runs, centre, browse)
    if server.process is not None and server.process.poll() is None:
        server.stop()


def emptied(database: str) -> None:
    """Take every table of another test away."""
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()


def write_records(database: str, runs: Path) -> None:
    """Write the runs that lie in folders into the database as well."""
    for name, rounds in (("melanoma-1", 8), ("melanoma-2", 12)):
        with RunWriter(database, heartbeat=0) as writer:
            believable_federation.begin_run(writer, name, rounds)
            for number in range(1, rounds + 1):
                believable_federation.add_model_round(writer, runs / name, number, rounds)
            writer.finish_run("finished")


@pytest.fixture
def browse(chromium: playwright.Browser) -> Iterator[Callable[..., playwright.Page]]:
    """Return a function that opens a page; at the end none may have complained or asked elsewhere."""
    contexts: list[playwright.BrowserContext] = []
    complaints: list[str] = []
    # A lost connection is reported by the browser itself; losing it is part of a test. So is a refusal.
    foreseen = ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED"]

    def complain(message: playwright.ConsoleMessage) -> None:
        if not any(words in message.text for words in foreseen):
            complaints.append(f"{message.type}: {message.text}")

    def watch(request: playwright.Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "file://")):
            complaints.append(f"request to {request.url}")

    def open_page(url: str, refusals: tuple[int, ...] = (), **options: object) -> playwright.Page:
        foreseen.extend(f"the server responded with a status of {status}" for status in refusals)
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
