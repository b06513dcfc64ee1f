"""Bring a database's tables to another revision, in one transaction: a kill in the middle leaves the old state.

Alembic does the work; it is imported only where there is any, because a record at its newest revision is opened often.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect
from sqlalchemy.engine import Engine

from popmi_core.errors import ConfigError, RecordError
from server.store.schema import display_name

BASE = "base"
"""The state before the first revision."""
LOCK_SECONDS = 60
"""How long to wait for others to let go of a table."""


@dataclass(frozen=True)
class History:
    """The revisions of one set of tables.

    Attributes:
        what: What the tables are, as errors name them.
        folder: Alembic's scripts: ``env.py`` and ``versions``.
        version_table: Table that holds the database's revision; two histories may share a database.
        revisions: All of this release, oldest first.
        lock: PostgreSQL's advisory lock of this history.
    """

    what: str
    folder: Path
    version_table: str
    revisions: tuple[str, ...]
    lock: int

    @property
    def head(self) -> str:
        """The revision this release writes."""
        return self.revisions[-1]


def current(engine: Engine, history: History) -> str:
    """Return the revision a database is at, ``base`` where it has none; changes nothing.

    Raises:
        SQLAlchemyError: If the database cannot be read.
    """
    with engine.connect() as connection:
        return _current(connection, history)


def bring(engine: Engine, history: History, to: str | None = None) -> tuple[str, str]:
    """Bring a database to revision ``to`` (the newest without); return the revision before and after.

    Two processes may do so at once: the second waits for the first, then finds nothing to do.

    Raises:
        RecordError: If the database was written by a newer release; nothing is changed.
        ConfigError: If this release has no revision ``to``.
        SQLAlchemyError: If the database refuses, or others hold it for too long.
    """
    wanted = history.head if to is None else to
    known = (BASE, *history.revisions)
    if wanted not in known:
        raise ConfigError(
            f"{history.what}: revision {wanted!r} is unknown, expected one of {', '.join(known)}. Use one of these."
        )
    before = current(engine, history)
    _refuse_newer(engine, history, before)
    if before == wanted:
        return before, wanted
    with _alone(engine, history) as connection:
        # Another process may have done it while this one waited.
        before = _current(connection, history)
        _refuse_newer(engine, history, before)
        _run(connection, history, wanted, up=known.index(before) < known.index(wanted))
    return before, wanted


def run_revisions() -> None:
    """Run what Alembic asks for on the connection it was handed; called by each history's ``env.py``."""
    from alembic import context

    context.configure(
        connection=context.config.attributes["connection"],
        version_table=context.config.attributes["version_table"],
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _current(connection: Connection, history: History) -> str:
    if not inspect(connection).has_table(history.version_table):
        return BASE
    found = connection.exec_driver_sql(f"SELECT version_num FROM {history.version_table}").scalar()
    return BASE if found is None else str(found)


def _refuse_newer(engine: Engine, history: History, found: str) -> None:
    if found not in (BASE, *history.revisions):
        where = display_name(str(engine.url)) if engine.dialect.name != "sqlite" else _file(engine)
        raise RecordError(
            f"{history.what} {where}: its tables are at revision {found}, this release knows up to {history.head}. "
            "Nothing was changed. Install the newer release again, or go back with it: popmi server database "
            f"--{history.what} {history.head}."
        )


def _file(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("PRAGMA database_list").all()[0][2])


@contextmanager
def _alone(engine: Engine, history: History) -> Iterator[Connection]:
    """Hand out a connection in a transaction that no other migration shares; commit it at the end."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({history.lock})")
                yield connection
            return
        # A table that is made anew would take its children's rows with it; this cannot be said within a transaction.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        try:
            # Python's sqlite3 opens no transaction for CREATE and ALTER by itself.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        finally:
            connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def _run(connection: Connection, history: History, to: str, *, up: bool) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(history.folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = history.version_table
    (command.upgrade if up else command.downgrade)(config, to)
