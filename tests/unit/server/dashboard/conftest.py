"""A believable federation, written once, and pages over it for whoever asks."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import signing_in
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update
from sqlalchemy.engine import Engine
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.centre import open_centre
from server.centre.board import write_board
from server.centre.opening import writing
from server.centre.orders import OrderRow, find
from server.centre.schema import Board
from server.dashboard.access.person import Person, Role
from server.dashboard.app import create_app

_SOURCE = Path(__file__).parents[3] / "support" / "believable_federation.py"
LOCAL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Home:
    """One copy of the federation that a test may change."""

    runs: Path
    centre: Engine


class AsPerson:
    """Has every request come from one person, as the guard would after a login."""

    def __init__(self, app: ASGIApp, role: Role) -> None:
        self._app, self._person = app, Person("lin", role, "token", "digest", "page")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["person"] = self._person
        await self._app(scope, receive, send)


@pytest.fixture(scope="session")
def federation_source() -> ModuleType:
    spec = importlib.util.spec_from_file_location("believable_federation", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def written_federation(tmp_path_factory: pytest.TempPathFactory, federation_source: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("federation")
    federation_source.build(folder, time.time())
    return folder


@pytest.fixture
def federation(written_federation: Path, tmp_path: Path) -> Iterator[Home]:
    """Two finished runs with model files, and the centre with sites and audit log."""
    home = tmp_path / "home"
    shutil.copytree(written_federation, home)
    centre = open_centre(home / "centre.sqlite")
    # It was written when the first test asked for it: a keeper that told nothing for a minute is silent.
    with writing(centre) as session:
        session.execute(update(Board).values(time=time.time()))
    yield Home(home / "runs", centre)
    centre.dispose()


@pytest.fixture
def visiting() -> Callable[..., AbstractContextManager[TestClient]]:
    """Return a function that opens the pages over runs and, if given, a centre, for a person of a role."""

    @contextmanager
    def visit(runs: Path, centre: Engine | None = None, role: Role = "viewer") -> Iterator[TestClient]:
        app = create_app(runs)
        app.state.centre = centre
        if centre is not None:
            # The last one is the innermost: behind the guard, which knows nobody here.
            app.user_middleware.append(Middleware(AsPerson, role=role))
        with TestClient(app, base_url=LOCAL) as client:
            yield client

    return visit


PLAN = {
    "project": "Melanoma (phantom)",
    "classes": ["mel", "nv"],
    "config": {"strategy": "fedprox", "rounds": 20, "local": {"objective": "proximal", "proximal_mu": 0.5}},
    "sites": ["msk", "rosendahl", "vidir_molemax"],
}


@pytest.fixture
def planned() -> dict[str, object]:
    """Return what the keeper told of the planned run."""
    return PLAN


@pytest.fixture
def open_pages(federation: Home, visiting: Callable[..., AbstractContextManager[TestClient]]) -> Callable[..., object]:
    """Return a function that opens the pages for a role, over a centre whose keeper told of the planned run."""
    write_board(federation.centre, "plan", PLAN)

    def visit(role: Role = "operator", *, centre: bool = True) -> AbstractContextManager[TestClient]:
        return visiting(federation.runs, federation.centre if centre else None, role)

    return visit


@pytest.fixture
def operator(open_pages: Callable[..., AbstractContextManager[TestClient]]) -> Iterator[TestClient]:
    """The pages as an operator sees them; answers that lead elsewhere are not followed."""
    with open_pages() as client:
        client.follow_redirects = False
        yield client


@pytest.fixture
def plain() -> Callable[[Any], str]:
    """Return a function that gives a page's words."""
    return lambda answer: " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


@pytest.fixture
def ordered(federation: Home) -> Callable[[Any], OrderRow]:
    """Return a function that gives the order that an answer leads to."""

    def row(answer: Any) -> OrderRow:
        assert answer.status_code == 303, answer.text
        found = find(federation.centre, int(answer.headers["location"].rpartition("/")[2]))
        assert found is not None
        return found

    return row


# Pages over a centre with people, behind their guard.


@pytest.fixture
def centre(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    signing_in.make_cheap(monkeypatch)
    engine = open_centre(database)
    signing_in.add_people(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def app(centre: Engine, runs: Path) -> FastAPI:
    return signing_in.app_of(centre, runs)


@pytest.fixture
def browser(app: FastAPI) -> Iterator[TestClient]:
    with signing_in.browser(app) as client:
        yield client


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "page.crt", folder / "page.k"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o600)
    return certificate, key
