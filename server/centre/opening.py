"""Where the centre is, and how it is opened and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from popmi_core.errors import RecordError, RunError
from popmi_core.protocol import DATABASE_VARIABLE
from server.centre.history import CENTRE_HISTORY
from server.store.migrating import bring
from server.store.schema import connect, display_name
from server.store.trouble import passes

CENTRE_NAME = "centre.sqlite"


def centre_database(home_folder: Path) -> str | Path:
    """Return where the centre of a server's home is: ``POPMI_DATABASE`` if that is set, else a file in the home."""
    return os.environ.get(DATABASE_VARIABLE, "").strip() or home_folder / CENTRE_NAME


def open_centre(database: str | Path) -> Engine:
    """Return the engine of a centre whose tables are this release's; made when missing.

    Threads may share it. An SQLite file is its user's only, because it holds password hashes.

    Raises:
        RunError: If the database cannot be reached or written now.
        RecordError: If it refuses for good, or was written by a newer release.
        ConfigError: If the URL is no database URL or its driver is not installed.
    """
    _keep_private(database)
    engine = connect(database, threads=True)
    try:
        bring(engine, CENTRE_HISTORY)
    except SQLAlchemyError as error:
        engine.dispose()
        # A database server draws the statement below its first line.
        cause = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        where = display_name(database)
        if passes(error):
            raise RunError(
                f"centre {where} cannot be opened: {cause}. Check that the database answers and its disk has room."
            ) from error
        raise RecordError(f"centre {where} refuses its tables: {cause}. Check this user's rights there.") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Hand out a session in one transaction, committed at the end, rolled back by an error.

    On SQLite it takes the write lock at once: what is read in it is still true when it is written.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        if engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
        yield session


def _keep_private(database: str | Path) -> None:
    text = str(database)
    if "://" in text and not text.startswith("sqlite:"):
        return
    path = Path(make_url(text).database or "" if "://" in text else text)
    # SQLite gives its side files the rights of the file. A folder that is missing is told when it is opened.
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
