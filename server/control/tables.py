"""At which revision a server's databases are, and how they are brought to another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from popmi_core.errors import RunError
from popmi_core.protocol import DATABASE_VARIABLE
from server.centre import centre_database
from server.centre.history import CENTRE_HISTORY
from server.control.home import ServerHome
from server.store import RunReader
from server.store.history import RECORD_HISTORY
from server.store.migrating import History, bring, current
from server.store.schema import RECORD_NAME, connect, display_name

ALIVE_SECONDS = 60
"""A run whose record was touched since then is going on."""


@dataclass(frozen=True)
class Tables:
    """One history's tables in one database.

    Attributes:
        history: Which.
        database: Where.
        revision: At which revision they are; ``base`` where there are none.
    """

    history: History
    database: str | Path
    revision: str

    @property
    def newest(self) -> bool:
        """Whether they are what this release writes."""
        return self.revision == self.history.head


def all_tables(home: ServerHome) -> tuple[Tables, ...]:
    """Return the centre's tables, then those of every record; changes nothing.

    Raises:
        RunError: If a database cannot be read.
    """
    return tuple(_look(history, database) for history, database in _places(home))


def bring_tables(home: ServerHome, history: History, to: str) -> tuple[Tables, ...]:
    """Bring all tables of a history to a revision; return how they were before.

    Going down needs the server at rest: what is running writes this release's columns.

    Raises:
        ConfigError: If this release has no such revision.
        SetupError: If the keeper is running and the way is down.
        RunError: If a run goes on and the way is down, or a database cannot be read or written.
    """
    wanted = [tables for tables in all_tables(home) if tables.history is history]
    known = ("base", *history.revisions)
    if to in known and any(tables.revision in known[known.index(to) + 1 :] for tables in wanted):
        with home.alone("keeper"):
            _refuse_going_on(wanted)
            _bring(wanted, to)
    else:
        _bring(wanted, to)
    return tuple(wanted)


def _places(home: ServerHome) -> Iterator[tuple[History, str | Path]]:
    served = os.environ.get(DATABASE_VARIABLE, "").strip()
    centre = centre_database(home.folder)
    if served or Path(centre).exists():
        yield CENTRE_HISTORY, centre
    if served:
        yield RECORD_HISTORY, served
        return
    for path in sorted(home.runs.glob(f"*/{RECORD_NAME}")):
        yield RECORD_HISTORY, path


def _look(history: History, database: str | Path) -> Tables:
    with _opened(history, database, read_only=True) as engine:
        return Tables(history, database, current(engine, history))


def _bring(wanted: Sequence[Tables], to: str) -> None:
    for tables in wanted:
        with _opened(tables.history, tables.database, read_only=False) as engine:
            bring(engine, tables.history, to)


def _refuse_going_on(wanted: Sequence[Tables]) -> None:
    for tables in wanted:
        if tables.history is not RECORD_HISTORY or tables.revision == "base":
            continue
        with RunReader(tables.database) as reader:
            for run_id, pulse in reader.pulses().items():
                if pulse.status in ("waiting", "running") and time.time() - pulse.heartbeat < ALIVE_SECONDS:
                    raise RunError(
                        f"record {display_name(tables.database)}: run {reader.run(run_id).name} goes on, expected "
                        "none. Stop it first: popmi server stop."
                    )


@contextmanager
def _opened(history: History, database: str | Path, *, read_only: bool) -> Iterator[Engine]:
    engine = connect(database, read_only=read_only)
    try:
        yield engine
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        raise RunError(
            f"{history.what} {display_name(database)} cannot be {'read' if read_only else 'changed'}: {cause}. Check "
            "that it is whole, that its server answers and that this user may change tables."
        ) from error
    finally:
        engine.dispose()
