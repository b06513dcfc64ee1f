"""The pages of sites: how each is, and one with its data, its budget and everything it did."""

from __future__ import annotations

import time
from dataclasses import fields

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dashboard.catalogue import NotFound
from server.dashboard.downloads import table_in
from server.dashboard.keeping import Told, codes_of, kept_sites, told
from server.dashboard.rendering import render_live
from server.dashboard.sections import RunSections
from server.dashboard.sitebook import SiteBook, SiteInRun, SiteLine, SiteList
from server.dashboard.siteview import view_site
from server.store import SiteRow
from server.store.looks import site_rounds

router = APIRouter(include_in_schema=False)
COLUMNS = (
    "site", "state", "detail", "online", "last_seen", "version", "clock_skew_seconds", "run", "last_round", "outcome",
    "rounds_ok", "rounds_all", "epsilon", "epsilon_limit", "code_hash", "fingerprint", "told",
)  # fmt: skip


def all_sites(request: Request) -> tuple[SiteList, Told, Told]:
    """Return every site, and what the keeper told of them and of the server."""
    state = request.app.state
    if not hasattr(state, "sitebook"):
        state.sitebook = SiteBook(state.catalogue)
    sites, status = told(request, "sites"), told(request, "status")
    return state.sitebook.sites(kept_sites(sites), codes_of(status)), sites, status


@router.get("/sites")
def sites_page(request: Request) -> Response:
    """All sites."""
    found, sites, status = all_sites(request)
    return render_live(request, "sites", found=found, told=sites, server=status.mapping(), now=time.time())


@router.get("/sites.{form}")
def sites_file(request: Request, form: str) -> Response:
    """The same table as a file."""
    found, sites, _ = all_sites(request)
    return table_in(form, "sites", COLUMNS, ((*_cells(line), sites.time) for line in found.lines))


@router.get("/sites/{name:path}/rounds.{form}")
def site_rounds_file(request: Request, name: str, form: str, run: str) -> Response:
    """What a site did in every round of one run, as a file."""
    found, _, _ = all_sites(request)
    chosen = _chosen(found.find(name), run)
    assert chosen is not None
    reader, run_id = request.app.state.catalogue.open(chosen.key)
    columns = [field.name for field in fields(SiteRow)]
    rows = ([getattr(row, name) for name in columns] for row in site_rounds(reader, run_id, site=name))
    return table_in(form, f"{name}-{chosen.run}-rounds", columns, rows)


# A simulation calls its sites as it likes, also with a slash.
@router.get("/sites/{name:path}")
def site_page(request: Request, name: str, run: str | None = None, split: str | None = None) -> Response:
    """One site; ``run`` picks the run that is shown, by default its newest."""
    found, sites, status = all_sites(request)
    line = found.find(name)
    chosen = _chosen(line, run)
    view = None
    if chosen is not None:
        reader, _ = request.app.state.catalogue.open(chosen.key)
        sections: RunSections = request.app.state.sections
        view = view_site(sections.held.get(chosen.key), reader, name, split=split)
    return render_live(
        request, "site", line=line, chosen=chosen, view=view, told=sites, server=status.mapping(), now=time.time()
    )


def _chosen(line: SiteLine, key: str | None) -> SiteInRun | None:
    if key is None:
        return line.newest
    for item in line.runs:
        if item.key == key:
            return item
    raise NotFound(key)


def _cells(line: SiteLine) -> tuple[object, ...]:
    kept, newest = line.kept, line.newest
    known = (
        (newest.run, newest.digest.last_round, newest.digest.outcome, newest.digest.rounds_ok, newest.digest.rounds_all,
         newest.epsilon, newest.epsilon_limit, newest.code_hash)
        if newest is not None
        else (None,) * 8
    )  # fmt: skip
    return (
        line.name, line.word, line.detail, kept.online if kept else None, kept.last_seen if kept else None,
        line.version, kept.clock_skew if kept else None, *known, kept.fingerprint if kept else None,
    )  # fmt: skip
