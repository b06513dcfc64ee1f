"""The page of one run: its sections, its curves, its tables, its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from popmi_core.errors import RunError
from server.dashboard.answers import answer, html, stream
from server.dashboard.attendance import attendance_of
from server.dashboard.catalogue import NotFound
from server.dashboard.charts import Chart
from server.dashboard.downloads import disposition, table_in
from server.dashboard.events import version_of
from server.dashboard.exports import Row, as_csv, as_json, newest_only, rows_of
from server.dashboard.language import language_of
from server.dashboard.rendering import render
from server.dashboard.report import render_report
from server.dashboard.running import RUNNING
from server.dashboard.sections import Asked, RunSections, changed
from server.dashboard.views import RunView

router = APIRouter(prefix="/runs", include_in_schema=False)
ROWS_SHOWN = 50
Number = Annotated[int | None, Query(ge=0, le=10**9)]


def _asked(
    request: Request, key: str, split: str | None, picked: int | None, upto: int | None, scope: str | None
) -> tuple[RunSections, Asked, RunView]:
    sections: RunSections = request.app.state.sections
    asked = Asked(key, language_of(request), split, picked, upto, scope or None)
    view = sections.view(asked)
    # What was asked for, as it was understood: two spellings of one page are one page.
    return sections, replace(asked, split=view.split), view


@router.get("/{key}")
def run_page(
    request: Request,
    key: str,
    split: str | None = None,
    picked: Annotated[Number, Query(alias="round")] = None,
    upto: Number = None,
    scope: str | None = None,
) -> Response:
    """One run."""
    sections, asked, view = _asked(request, key, split, picked, upto, scope)
    parts = sections.parts(asked, view)
    return render(request, "run.html", view=view, key=key, asked=asked, parts=parts, version=version_of(view.run))


@router.get("/{key}/live")
def run_live(
    request: Request,
    key: str,
    split: str | None = None,
    picked: Annotated[Number, Query(alias="round")] = None,
    upto: Number = None,
    scope: str | None = None,
    have: str = "",
) -> Response:
    """The sections of a run's page that changed; ``have`` are the digests of those that the page has."""
    try:
        sections, asked, view = _asked(request, key, split, picked, upto, scope)
        return html(changed(sections.parts(asked, view), have.split(".")))
    except RunError as error:
        # 200, so that the page shows the trouble in place and recovers with the next change.
        return render(request, "_trouble.html", name="head", text=str(error))


@router.get("/{key}/changes")
def run_changes(request: Request, key: str, seen: str = "") -> Response:
    """The event stream of a run."""
    if key not in request.app.state.catalogue.names():
        raise NotFound(key)
    return stream(request, key, seen)


@router.get("/{key}/series")
def run_series(request: Request, key: str, split: str | None = None, epoch: str = "", since: Number = None) -> Response:
    """The points of every curve, from a round on."""
    sections, asked, view = _asked(request, key, split, None, None, None)
    return answer(request, sections.series(asked, view, epoch, since or 0), "application/json")


@router.get("/{key}/curves/{name}.{form}")
def curve_file(request: Request, key: str, name: str, form: str, split: str | None = None) -> Response:
    """One chart's whole table as a file."""
    _, asked, view = _asked(request, key, split, None, None, None)
    chart = _chart(view, name, 0)
    rows: Iterator[list[object]] = (
        [number, *(line.values[place] for line in chart.lines)] for place, number in enumerate(chart.rounds)
    )
    return table_in(form, f"{key}-{name}-{asked.split}", ["round", *(line.scope for line in chart.lines)], rows)


@router.get("/{key}/curves/{name}")
def curve_table(request: Request, key: str, name: str, split: str | None = None) -> Response:
    """One chart's table: a part of the page, or a page of its own for browsers without scripts."""
    _, asked, view = _asked(request, key, split, None, None, None)
    shown = _chart(view, name, max(0, view.held.done + 1 - ROWS_SHOWN))
    return _piece(request, "curve", view, asked, chart=shown, limit=ROWS_SHOWN)


@router.get("/{key}/attendance")
def attendance(request: Request, key: str) -> Response:
    """Who took part in which round, over the whole run."""
    _, asked, view = _asked(request, key, None, None, None, None)
    items, last = attendance_of(view.held.sites, view.site_names), max(0, view.held.sites.last)
    return _piece(request, "attendance", view, asked, items=items, last=last)


@router.get("/{key}/rounds/{number}")
def round_notes(request: Request, key: str, number: int) -> Response:
    """The notes of one round."""
    _, asked, view = _asked(request, key, None, None, None, None)
    row = next((row for row in view.rounds if row.server_round == number), None)
    if row is None:
        raise NotFound(str(number))
    return _piece(request, "notes", view, asked, row=row)


@router.get("/{key}/report.html")
def report(request: Request, key: str) -> Response:
    """The run as one file that needs no server."""
    reader, run_id = request.app.state.catalogue.open(key)
    text = render_report(reader, run_id, language=language_of(request))
    return _download(text, f"{key}-report.html", "text/html; charset=utf-8")


@router.get("/{key}/{table}.csv")
def table_csv(request: Request, key: str, table: str) -> Response:
    """One table of a run as a file."""
    reader, run_id = request.app.state.catalogue.open(key)
    rows = rows_of(reader, run_id, table)
    return _download(as_csv(table, rows), _file_name(key, table, rows, "csv"), "text/csv; charset=utf-8")


@router.get("/{key}/{table}.json")
def table_json(request: Request, key: str, table: str) -> Response:
    """The same as JSON; null is undefined."""
    reader, run_id = request.app.state.catalogue.open(key)
    rows = rows_of(reader, run_id, table)
    text = json.dumps([as_json(row) for row in rows])
    return _download(text, _file_name(key, table, rows, "json"), "application/json")


def _file_name(key: str, table: str, rows: Sequence[Row], ending: str) -> str:
    return "-".join(part for part in (key, table, newest_only(table, rows)) if part) + f".{ending}"


def _chart(view: RunView, name: str, since: int) -> Chart:
    charts = view.running(since) if name in RUNNING else view.charts_since(since)
    found = next((item for item in charts if item.id == name), None)
    if found is None:
        raise NotFound(name)
    return found


def _piece(request: Request, name: str, view: RunView, asked: Asked, **values: Any) -> Response:
    # htmx asks for a part of the page it is on; a link without scripts for a page.
    values |= {"view": view, "key": asked.key, "asked": asked, "piece": name}
    part = request.headers.get("hx-request") == "true"
    return render(request, "_piece.html" if part else "piece.html", **values)


def _download(text: str, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": disposition(name)}
    return Response(text.encode("utf-8", "replace"), media_type=kind, headers=headers)
