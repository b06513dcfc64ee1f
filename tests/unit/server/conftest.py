"""Share the believable run with the tests of the record, the pages and the report."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import throwaway_postgres
from sqlalchemy import create_engine, text

_SOURCE = Path(__file__).parents[2] / "support" / "believable_run.py"


def load_believable() -> ModuleType:
    """Load the helper by its path: tests are no packages."""
    spec = importlib.util.spec_from_file_location("believable_run", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def believable() -> ModuleType:
    return load_believable()


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, believable: ModuleType) -> Callable[..., Path]:
    """Return a function that writes each kind of run once and returns its record."""
    home = tmp_path_factory.mktemp("stock")
    made: dict[str, Path] = {}

    def make(**described: object) -> Path:
        key = repr(sorted(described.items()))
        if key not in made:
            made[key] = home / f"{len(made)}.sqlite"
            believable.write_run(made[key], **described)
        return made[key]

    return make


@pytest.fixture
def written(tmp_path: Path, stock: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that puts a finished run into ``runs/NAME`` and returns the folder of runs."""

    def write(name: str = "opm-seed0", rounds: int = 4, **changes: object) -> Path:
        home = tmp_path / "runs" / name
        home.mkdir(parents=True)
        shutil.copy(stock(name=name, rounds=rounds, **changes), home / "record.sqlite")
        return tmp_path / "runs"

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Hand out the address of a PostgreSQL for the tests of this process; what a test finds in it is another's."""
    if throwaway_postgres.programs() is None:
        pytest.skip("PostgreSQL's programs are not installed here")
    pytest.importorskip("psycopg")
    with throwaway_postgres.running() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Hand out an empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "record.sqlite")
    address: str = request.getfixturevalue("postgres")
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()
    return address
