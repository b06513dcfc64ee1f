"""The pages of runs: the list, one run, its report and tables, and the event streams."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from popmi_core.errors import RunError
from server.dashboard.access.person import person_of
from server.dashboard.catalogue import Catalogue, NotFound
from server.dashboard.exports import as_csv, rows_of
from server.dashboard.health import State
from server.dashboard.rendering import render
from server.dashboard.report import render_report
from server.dashboard.views import view_run, view_state
from server.store import RunSummary

router = APIRouter()


@dataclass(frozen=True)
class RunLine:
    """One line of the list of runs; ``run`` is None when its record cannot be read."""

    key: str
    run: RunSummary | None
    state: State


@router.get("/", include_in_schema=False)
def runs_page(request: Request) -> Response:
    """The list of runs."""
    return _runs(request, "runs.html", request.app.state.watcher.fresh(None))


@router.get("/live", include_in_schema=False)
def runs_live(request: Request) -> Response:
    """The part of the list that changes."""
    return _runs(request, "_runs.html", "")


@router.get("/changes", include_in_schema=False)
def runs_changes(request: Request, seen: str = "") -> Response:
    """The event stream of the list."""
    return _stream(request, None, seen)


@router.get("/runs/{key}", include_in_schema=False)
def run_page(request: Request, key: str, split: str | None = None) -> Response:
    """One run."""
    return _run(request, "run.html", key, split, request.app.state.watcher.fresh(key))


@router.get("/runs/{key}/live", include_in_schema=False)
def run_live(request: Request, key: str, split: str | None = None) -> Response:
    """The part of a run's page that changes."""
    try:
        return _run(request, "_run.html", key, split, "")
    except RunError as error:
        # 200, so that the page shows the trouble in place and recovers with the next change.
        return render(request, "_trouble.html", text=str(error))


@router.get("/runs/{key}/changes", include_in_schema=False)
def run_changes(request: Request, key: str, seen: str = "") -> Response:
    """The event stream of a run."""
    if key not in request.app.state.catalogue.names():
        raise NotFound(key)
    return _stream(request, key, seen)


@router.get("/runs/{key}/report.html", include_in_schema=False)
def report(request: Request, key: str) -> Response:
    """The run as one file that needs no server."""
    reader, run_id = request.app.state.catalogue.open(key)
    return _download(render_report(reader, run_id), f"{key}-report.html", "text/html; charset=utf-8")


@router.get("/runs/{key}/{table}.csv", include_in_schema=False)
def table_csv(request: Request, key: str, table: str) -> Response:
    """One table of a run as a file."""
    reader, run_id = request.app.state.catalogue.open(key)
    text = as_csv(table, rows_of(reader, run_id, table))
    return _download(text, f"{key}-{table}.csv", "text/csv; charset=utf-8")


def _runs(request: Request, template: str, version: str) -> Response:
    catalogue: Catalogue = request.app.state.catalogue
    try:
        lines = [_line(catalogue, key) for key in catalogue.names()]
    except RunError as error:
        return render(request, "message.html", status=503, title="The record cannot be read", text=str(error))
    lines.sort(key=lambda line: -(line.run.created if line.run else 0.0))
    return render(request, template, lines=lines, version=version)


def _line(catalogue: Catalogue, key: str) -> RunLine:
    try:
        reader, run_id = catalogue.open(key)
        run = reader.run(run_id)
        return RunLine(key, run, view_state(reader, run, time.time()))
    except RunError as error:
        return RunLine(key, None, State("unreadable", "bad", str(error)))
    except NotFound:
        return RunLine(key, None, State("gone", "bad", "its folder was removed just now"))


def _run(request: Request, template: str, key: str, split: str | None, version: str) -> Response:
    reader, run_id = request.app.state.catalogue.open(key)
    view = view_run(reader, run_id, split=split, now=time.time())
    return render(request, template, view=view, key=key, version=version)


def _stream(request: Request, key: str | None, seen: str) -> Response:
    # A browser that comes back by itself says what it saw last.
    seen = request.headers.get("last-event-id", seen)
    events = request.app.state.watcher.stream(key, seen, person_of(request).session)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _download(text: str, name: str, kind: str) -> Response:
    plain = name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_").replace("\n", "_")
    where = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return Response(text, media_type=kind, headers={"Content-Disposition": where})
