"""Tables as files: CSV that a spreadsheet opens and does not run, and the header that names a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from server.dashboard.catalogue import NotFound


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


def table_in(form: str, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """Return a table as the file ``name.form``: *csv*, or *json*, a list with an object a row; unknown is null there.

    Raises:
        NotFound: If the form is another.
    """
    if form == "csv":
        return table_file(f"{name}.csv", columns, rows)
    if form != "json":
        raise NotFound(form)
    text = json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1, ensure_ascii=False)
    headers = {"Content-Disposition": disposition(f"{name}.json")}
    return Response(text.encode("utf-8", "replace"), media_type="application/json", headers=headers)


def table_row(values: Iterable[Any]) -> str:
    """Return one line of a CSV file, for those too long to be made in one piece."""
    out = io.StringIO()
    csv.writer(out).writerow([cell(value) for value in values])
    return out.getvalue()


def cell(value: Any) -> Any:
    """Return a value for a cell: what is no plain value as JSON, a text that begins like a formula quoted.

    A spreadsheet runs such a text, and sites choose their names.
    """
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
