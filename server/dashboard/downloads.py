"""Tables as files: CSV that a spreadsheet opens and does not run, and the header that names a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import Response


def disposition(name: str) -> str:
    """Return the header that makes a browser save an answer as ``name``, whatever letters it holds."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "_" for letter in name)
    plain = plain.replace('"', "_").replace("\\", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"


def table_file(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """Return a table as a CSV file; what is unknown is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in rows)
    payload = out.getvalue().encode("utf-8", "replace")
    return Response(payload, media_type="text/csv; charset=utf-8", headers={"Content-Disposition": disposition(name)})


def table_row(values: Iterable[Any]) -> str:
    """Return one line of a CSV file, for those too long to be made in one piece."""
    out = io.StringIO()
    csv.writer(out).writerow([cell(value) for value in values])
    return out.getvalue()


def cell(value: Any) -> Any:
    """Return a value for a cell: a spreadsheet runs a text that begins like a formula, and sites choose their names."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
