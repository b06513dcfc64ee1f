"""A record opened for writing: brought to this release's tables, its troubles told, one file at rest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from popmi_core.errors import RecordError, RunError
from server.store.history import RECORD_HISTORY
from server.store.migrating import bring
from server.store.schema import connect, display_name
from server.store.trouble import passes


class OpenRecord:
    """What every writer of a record stands on: one connection, taken by one thread at a time.

    Args:
        database: Path of an SQLite file (made when missing) or an SQLAlchemy URL. Tables of an earlier release are
            brought to this one's; no row is changed or lost.

    Raises:
        RunError: If the record cannot be written now.
        RecordError: If it refuses for good, or was written by a newer release.
    """

    def __init__(self, database: str | Path) -> None:
        self._where = display_name(database)
        self._engine = connect(database)
        self._lock = threading.Lock()
        try:
            with self._guard():
                bring(self._engine, RECORD_HISTORY)
        except BaseException:
            self._engine.dispose()
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._lock, self._guard(), Session(self._engine) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OverflowError) as error:
            named = error if isinstance(error, OverflowError) else type(error).__name__
            cause = getattr(error, "orig", None) or named
            if passes(error):
                raise RunError(
                    f"record {self._where} cannot be written: {cause}. Check free space and rights, then resume the "
                    "run."
                ) from error
            raise RecordError(
                f"record {self._where} does not take what is to be written: {cause}. Check its tables and rights; no "
                "waiting helps."
            ) from error

    def _let_go(self) -> None:
        if self._engine.dialect.name == "sqlite":
            # One plain file at rest: it can be copied, and read from a read-only disk. A reader may be in the way.
            with contextlib.suppress(SQLAlchemyError), self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA busy_timeout=200")
                connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
        self._engine.dispose()
