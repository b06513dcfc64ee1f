"""``/api/v1``: what the pages show, for programs; and ``/healthz``."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from popmi_core.errors import RunError
from server.dashboard.exports import as_json, rows_of, run_as_json
from server.dashboard.health import judge

router = APIRouter()


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the page server answers."""
    return {"status": "ok"}


@router.get("/api/v1/runs")
def runs(request: Request) -> list[dict[str, Any]]:
    """List every run; one that cannot be read carries ``unreadable`` and the reason instead."""
    found = []
    for key in request.app.state.catalogue.names():
        try:
            found.append(run(request, key))
        except RunError as error:
            found.append({"key": key, "unreadable": str(error)})
    return found


@router.get("/api/v1/runs/{key}")
def run(request: Request, key: str) -> dict[str, Any]:
    """Return a run's head: state in words, progress, config, environment."""
    reader, run_id = request.app.state.catalogue.open(key)
    summary = reader.run(run_id)
    since = summary.rounds_done
    state = judge(summary, reader.rounds(run_id, since=since), reader.sites(run_id, since=since), time.time())
    return run_as_json(key, summary, state)


@router.get("/api/v1/runs/{key}/{table}")
def table(request: Request, key: str, table: str) -> list[dict[str, Any]]:
    """Return ``rounds``, ``sites``, ``metrics``, ``matches``, ``candidates`` or ``events``; null is undefined."""
    reader, run_id = request.app.state.catalogue.open(key)
    return [as_json(row) for row in rows_of(reader, run_id, table)]
