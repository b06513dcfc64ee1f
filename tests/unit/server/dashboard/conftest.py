"""Pages with a centre and an account of each role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import signing_in
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.engine import Engine

from server.centre import open_centre


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
