"""The page of runs: filtered, sorted, live."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from popmi_core.errors import RunError
from server.dashboard.answers import html, stream
from server.dashboard.kept import Part, part
from server.dashboard.language import N_, language_of
from server.dashboard.rendering import environment, render, where_of
from server.dashboard.runlines import GROUPS, LINES_SHOWN, Choice, RunLines
from server.dashboard.sections import changed

router = APIRouter(include_in_schema=False)


@router.get("/")
def runs_page(
    request: Request, q: str = "", state: str = "", strategy: str = "", sort: str = "begun", order: str = "down"
) -> Response:
    """The list of runs."""
    version = request.app.state.watcher.fresh(None)
    choice = Choice(q, state, strategy, sort, order)
    try:
        found = _part(request, choice)
    except RunError as error:
        return render(request, "message.html", status=503, title=N_("The record cannot be read"), text=str(error))
    return render(request, "runs.html", parts={"runs": found}, version=version, query=_query(choice))


@router.get("/live")
def runs_live(
    request: Request,
    q: str = "",
    state: str = "",
    strategy: str = "",
    sort: str = "begun",
    order: str = "down",
    have: str = "",
) -> Response:
    """The list again, where it changed."""
    try:
        return html(changed({"runs": _part(request, Choice(q, state, strategy, sort, order))}, have.split(".")))
    except RunError as error:
        return render(request, "_trouble.html", name="runs", text=str(error))


@router.get("/changes")
def runs_changes(request: Request, seen: str = "") -> Response:
    """The event stream of the list."""
    return stream(request, None, seen)


def _part(request: Request, choice: Choice) -> Part:
    runs: RunLines = request.app.state.lines
    lines = runs.all()
    chosen = choice.of(lines)
    values: dict[str, Any] = {
        "lines": chosen[:LINES_SHOWN],
        "shown": min(LINES_SHOWN, len(chosen)),
        "chosen": len(chosen),
        "all": len(lines),
        "strategies": sorted({line.run.strategy for line in lines if line.run}),
        "choice": choice,
        "groups": GROUPS,
        "query": _query(choice),
        "where": where_of(request),
    }
    return part(environment(language_of(request)).get_template("_runs.html").render(values))


def _query(choice: Choice) -> dict[str, str]:
    pairs = {
        "q": choice.query, "state": choice.group, "strategy": choice.strategy, "sort": choice.sort,
        "order": choice.order,
    }  # fmt: skip
    return {name: value for name, value in pairs.items() if value}
