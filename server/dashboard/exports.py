"""The record's tables as plain values: for the JSON API and for CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from server.dashboard.catalogue import NotFound
from server.dashboard.health import State
from server.store import CandidateRow, EventRow, MatchRow, MetricRow, RoundRow, RunReader, RunSummary, SiteRow

Row = CandidateRow | EventRow | MatchRow | MetricRow | RoundRow | SiteRow
TABLES: dict[str, type[Row]] = {
    "candidates": CandidateRow,
    "events": EventRow,
    "matches": MatchRow,
    "metrics": MetricRow,
    "rounds": RoundRow,
    "sites": SiteRow,
}


def rows_of(reader: RunReader, run_id: int, table: str) -> Sequence[Row]:
    """Return one table of a run; ``NotFound`` for a name that is none of ``TABLES``."""
    if table not in TABLES:
        raise NotFound(table)
    if table == "events":
        return reader.events(run_id, last=100_000)
    found: Sequence[Row] = getattr(reader, table)(run_id)
    return found


def as_csv(table: str, rows: Sequence[Row]) -> str:
    """Return rows as CSV; undefined figures are empty cells."""
    names = [field.name for field in fields(TABLES[table])]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return out.getvalue()


def as_json(row: Row) -> dict[str, Any]:
    """Return a row with plain keys and values."""
    return asdict(row)


def run_as_json(key: str, run: RunSummary, state: State) -> dict[str, Any]:
    """Return a run's head with its state in words."""
    return {"key": key, **asdict(run), "state": asdict(state)}


def _cell(value: Any) -> Any:
    # A spreadsheet runs a text that begins like a formula; a site chooses its own name.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
