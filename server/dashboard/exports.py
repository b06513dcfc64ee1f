"""The record's tables as plain values: for the JSON API and for CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from server.dashboard.catalogue import NotFound
from server.dashboard.downloads import cell
from server.store import CandidateRow, DetailRow, EventRow, MatchRow, MetricRow, RoundRow, RunReader, SiteRow

LONGEST_DIARY = 100_000
"""Lines of the diary that are sent at once, the newest; a file or an answer with so many says so."""
Row = CandidateRow | DetailRow | EventRow | MatchRow | MetricRow | RoundRow | SiteRow
TABLES: dict[str, type[Row]] = {
    "candidates": CandidateRow,
    "details": DetailRow,
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
        return reader.events(run_id, last=LONGEST_DIARY)
    found: Sequence[Row] = getattr(reader, table)(run_id)
    return found


def newest_only(table: str, rows: Sequence[Row]) -> str:
    """Return what is to be said of rows that may not be all there are, for a file's name or a header; else nothing."""
    return f"newest-{len(rows)}" if table == "events" and len(rows) >= LONGEST_DIARY else ""


def as_csv(table: str, rows: Sequence[Row]) -> str:
    """Return rows as CSV; undefined figures are empty cells, what is no plain value is JSON.

    Details, which hold lists in lists, become a line for each of their values: ``item`` says where it stood.
    """
    names = [field.name for field in fields(TABLES[table])]
    out = io.StringIO()
    writer = csv.writer(out)
    if table == "details":
        writer.writerow([*names[:-1], "item", "value"])
        for row in rows:
            known = [cell(getattr(row, name)) for name in names[:-1]]
            writer.writerows([*known, cell(item), cell(value)] for item, value in leaves(row.value))  # type: ignore[union-attr]
        return out.getvalue()
    writer.writerow(names)
    writer.writerows([cell(getattr(row, name)) for name in names] for row in rows)
    return out.getvalue()


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value inside a nested one, with the names and numbers that lead to it, joined by dots."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{place}.{number}" if place else str(number))
    else:
        yield place, value


def as_json(row: Row) -> dict[str, Any]:
    """Return a row with plain keys and values."""
    # Not dataclasses.asdict: it copies deeply, which takes seconds for 200,000 rows.
    return dict(vars(row))
