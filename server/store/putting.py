"""Put rows into their tables in one statement a table, over rows of the same key.

A round of twenty sites is some hundred rows: asking for each before it is written takes seconds on a busy database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from server.store.schema import Base


def put(session: Session, rows: Sequence[Base]) -> None:
    """Write new rows, and replace those that are there; of two with one key the later counts."""
    dialect: Any = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    tables: dict[type[Base], dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        columns = inspect(type(row)).column_attrs
        values = {each.columns[0].name: getattr(row, each.key) for each in columns}
        key = tuple(values[column.name] for column in inspect(type(row)).primary_key)
        tables[type(row)][key] = values
    for table, kept in tables.items():
        keys = [column.name for column in inspect(table).primary_key]
        insert = dialect.insert(inspect(table).local_table)
        others = {name: insert.excluded[name] for name in next(iter(kept.values())) if name not in keys}
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_=others), list(kept.values()))
