"""Bring the tables of an existing record to what this release writes. Only additions: no row is changed or lost."""

from __future__ import annotations

from sqlalchemy import BigInteger, inspect
from sqlalchemy.engine import Engine

from server.store.schema import SiteRound

WIDENED = ("bytes_up", "bytes_down")
"""Columns that held at most 2,147,483,647: candidates of a large model weigh more."""
LOCK_SECONDS = 60
"""How long to wait for others to let go of the table."""


def widen(engine: Engine) -> list[str]:
    """Let the columns of an older release hold 64 bits, in one transaction; return those that were changed.

    SQLite's whole numbers have 64 bits whatever the column says.
    """
    if engine.dialect.name != "postgresql":
        return []
    table = SiteRound.__tablename__
    narrow = [
        column["name"]
        for column in inspect(engine).get_columns(table)
        if column["name"] in WIDENED and not isinstance(column["type"], BigInteger)
    ]
    if narrow:
        changes = ", ".join(f"ALTER COLUMN {name} TYPE BIGINT" for name in narrow)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
            connection.exec_driver_sql(f"ALTER TABLE {table} {changes}")
    return narrow
