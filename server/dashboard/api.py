"""``/api/v1``: what the pages show of runs, for programs; and ``/healthz``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from popmi_core.errors import RunError
from server.dashboard.answered import Problem
from server.dashboard.catalogue import NotFound
from server.dashboard.exports import TABLES, as_json, newest_only, rows_of
from server.dashboard.run_answers import RunAnswer, UnreadableRun, run_answer
from server.dashboard.runlines import RunLine, RunLines

UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "there is no such run"}}
UNREAD: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "a record cannot be read"}}
ABOUT = {
    "rounds": "Every round: outcome, seconds by phase, notes, the model's hash.",
    "sites": "What every site did in every round and phase.",
    "metrics": "Every figure: by scope (global, external or a site), split and name; value null is undefined.",
    "matches": "How well every layer of every site was matched.",
    "candidates": "What every site found of every candidate for a round's model.",
    "details": "What is more than one figure: turned images, calibration, confusion, classes, similarity.",
    "events": "The diary; of more than 100,000 lines the newest, and the header X-POPMI-Rows says so.",
}
Round = Annotated[int | None, Query(alias="round", ge=0, le=10**9, description="only this round")]

router = APIRouter(tags=["runs"])


@router.get("/healthz", tags=["health"])
def healthz() -> dict[str, str]:
    """Say that the page server answers."""
    return {"status": "ok"}


@router.get("/api/v1/runs", responses=UNREAD)
def runs(request: Request) -> list[RunAnswer | UnreadableRun]:
    """List every run, by key; one that cannot be read carries ``unreadable`` and the reason instead."""
    lines: RunLines = request.app.state.lines
    return [_answer(line) for line in sorted(lines.all(), key=lambda line: line.key)]


@router.get("/api/v1/runs/{key}", responses=UNKNOWN | UNREAD)
def run(request: Request, key: str) -> RunAnswer:
    """Return a run's head: state in words, progress, time left, config, environment."""
    lines: RunLines = request.app.state.lines
    found = lines.one(key)
    if found.run is None:
        raise RunError(found.state.detail)
    return run_answer(key, found.run, found.state, found.left)


def _answer(line: RunLine) -> RunAnswer | UnreadableRun:
    if line.run is None:
        return UnreadableRun(key=line.key, unreadable=line.state.detail)
    return run_answer(line.key, line.run, line.state, line.left)


def _table(name: str) -> Callable[[Request, str, int | None], Response]:
    def table(request: Request, key: str, server_round: Round = None) -> Response:
        reader, run_id = request.app.state.catalogue.open(key)
        rows: Sequence[Any] = rows_of(reader, run_id, name)
        chosen = [as_json(row) for row in rows if server_round in (None, row.server_round)]
        # Rows come from the record as they are described: to look at each of 200,000 again would take seconds.
        cut = newest_only(name, rows)
        headers = {"X-POPMI-Rows": cut} if cut else None
        return Response(json.dumps(chosen, allow_nan=False), media_type="application/json", headers=headers)

    table.__name__ = name
    table.__doc__ = ABOUT[name]
    return table


for _name, _row in TABLES.items():
    router.add_api_route(
        f"/api/v1/runs/{{key}}/{_name}",
        _table(_name),
        response_model=list[_row],  # type: ignore[valid-type]
        responses=UNKNOWN | UNREAD,
        methods=["GET"],
        name=_name,
        summary=ABOUT[_name],
    )


@router.get("/api/v1/runs/{key}/{table}", include_in_schema=False)
def unknown_table(key: str, table: str) -> None:
    """Say that there is no such table.

    Raises:
        NotFound: Always.
    """
    raise NotFound(f"{key}/{table}")
