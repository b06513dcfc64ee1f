"""The page that lays runs side by side."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from popmi_core.errors import RunError
from server.dashboard.answers import answer, html
from server.dashboard.catalogue import NotFound
from server.dashboard.charts import Chart
from server.dashboard.comparing import MOST_RUNS, Comparison, compare
from server.dashboard.downloads import table_in
from server.dashboard.health import judge
from server.dashboard.held import Held
from server.dashboard.kept import Part
from server.dashboard.language import N_, language_of
from server.dashboard.rendering import environment, render
from server.dashboard.sections import RunSections, changed, charts_text
from server.dashboard.words import said
from server.store.looks import awaited_sites

router = APIRouter(prefix="/compare", include_in_schema=False)
Runs = Annotated[list[str], Query()]


@router.get("")
def compare_page(request: Request, run: Runs = [], split: str | None = None, metric: str = "") -> Response:  # noqa: B006
    """Two to eight runs side by side."""
    keys = list(dict.fromkeys(run))
    if not 2 <= len(keys) <= MOST_RUNS:
        text = said(N_("Choose two to %(most)s runs on the list of runs; %(got)s came."), most=MOST_RUNS, got=len(keys))
        return render(request, "comparing.html", status=400, text=text)
    found = compared(request, keys, split, metric)
    parts, query = {"compare": _part(request, found)}, _query(found)
    version = request.app.state.watcher.fresh(None)
    return render(request, "compare.html", parts=parts, found=found, query=query, version=version)


@router.get("/live")
def compare_live(
    request: Request,
    run: Runs = [],  # noqa: B006
    split: str | None = None,
    metric: str = "",
    have: str = "",
) -> Response:
    """The tables again, where they changed."""
    try:
        return html(changed({"compare": _part(request, compared(request, run, split, metric))}, have.split(".")))
    except RunError as error:
        return render(request, "_trouble.html", name="compare", text=str(error))


@router.get("/series")
def compare_series(request: Request, run: Runs = [], split: str | None = None, metric: str = "") -> Response:  # noqa: B006
    """The points of the curves."""
    found = compared(request, run, split, metric)
    sections: RunSections = request.app.state.sections
    language = language_of(request)
    key = ("compared", found.keys, found.epoch, found.split, found.metric, language)
    part = sections.kept.get(key, lambda: charts_text(found.charts(), found.epoch, 0, 0, language))
    return answer(request, part, "application/json")


@router.get("/curves/{name}.{form}")
def compared_file(request: Request, name: str, form: str, run: Runs = [], split: str | None = None) -> Response:  # noqa: B006
    """One figure of all runs as a file."""
    found = compared(request, run, split, name)
    chart = _chart(found, name)
    rows = ([number, *(line.values[place] for line in chart.lines)] for place, number in enumerate(chart.rounds))
    return table_in(form, f"compared-{name}-{found.split}", ["round", *(line.scope for line in chart.lines)], rows)


@router.get("/curves/{name}")
def compared_table(request: Request, name: str, run: Runs = [], split: str | None = None) -> Response:  # noqa: B006
    """One figure of all runs as a table."""
    found = compared(request, run, split, name)
    part = request.headers.get("hx-request") == "true"
    chart, query = _chart(found, name), _query(found)
    return render(request, "_compared.html" if part else "compared.html", chart=chart, query=query, limit=50)


def compared(request: Request, keys: list[str], split: str | None, metric: str) -> Comparison:
    """Return the comparison of these runs; ``NotFound`` for one that is not there."""
    keys = list(dict.fromkeys(keys))[:MOST_RUNS]
    if not keys:
        raise NotFound("no run")
    sections: RunSections = request.app.state.sections
    return compare(keys, [sections.held.get(key) for key in keys], split, metric)


def _chart(found: Comparison, name: str) -> Chart:
    chart = next((item for item in found.charts() if item.id == name), None)
    if chart is None:
        raise NotFound(name)
    return chart


def _part(request: Request, found: Comparison) -> Part:
    sections: RunSections = request.app.state.sections
    language, now = language_of(request), time.time()
    states = [
        judge(item.run, item.rounds, item.sites.recent(item.done), now, awaited=_awaited(request, key, item))
        for key, item in zip(found.keys, found.held, strict=True)
    ]
    told = tuple((item.run.revision, state.word, state.detail) for item, state in zip(found.held, states, strict=True))
    key = ("compare", found.keys, found.epoch, told, found.split, found.metric, language)

    def make() -> str:
        template = environment(language).get_template("_compare.html")
        return template.render(found=found, states=states, query=_query(found))

    return sections.kept.get(key, make)


def _awaited(request: Request, key: str, held: Held) -> tuple[str, ...]:
    reader, _ = request.app.state.catalogue.open(key)
    return awaited_sites(reader, held.run)


def _query(found: Comparison) -> list[tuple[str, str]]:
    chosen = [("metric", found.metric)] if found.metric else []
    return [*(("run", key) for key in found.keys), ("split", found.split), *chosen]
