"""Sites and status as a person reads them at a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from server.control.sites import SiteView
from server.control.status import RunStatus, ServerStatus, short
from server.control.tables import Tables
from server.dashboard.health import span
from server.store.schema import display_name


def sites_as_json(views: Sequence[SiteView], certificate_days: int) -> str:
    """Return all sites as JSON."""
    return json.dumps({"certificate_days": certificate_days, "sites": [asdict(view) for view in views]}, indent=1)


def print_sites(views: Sequence[SiteView], certificate_days: int, *, console: Console | None = None) -> None:
    """Print the sites; a fingerprint is never cut short, since two people compare it by telephone."""
    out = console or Console()
    for view in views:
        online = "" if view.online is None or view.node_id is None else ", online" if view.online else ", not online"
        seen = "" if view.last_seen is None else f", last seen {span(max(0.0, time.time() - view.last_seen))} ago"
        node = "" if view.node_id is None else f"  node {view.node_id}"
        lines = [f"{view.name}: {view.state}{online}{seen}"]
        lines += [f"  {view.fingerprint}{node}"] if view.fingerprint else []
        lines += [f"  excluded: {view.excluded}"] if view.excluded is not None else []
        lines += [f"  ! {view.note}"] if view.note else []
        for line in lines:
            out.print(escape(line), soft_wrap=True)
    if not views:
        out.print("no site yet: popmi server add-site NAME")
    out.print(f"The server's certificate is good for {certificate_days} days.")


def print_tables(found: Sequence[Tables], home: Path, *, console: Console | None = None) -> None:
    """Print at which revision each database's tables are."""
    out = console or Console()
    for tables in found:
        where = display_name(tables.database).removeprefix(f"{home}/")
        at = "no tables yet" if tables.revision == "base" else f"revision {tables.revision}"
        newest = "" if tables.newest else f", this release writes {tables.history.head}"
        out.print(f"{tables.history.what}  {escape(where)}: {at}{newest}", soft_wrap=True, highlight=False)
    if not found:
        out.print("no database yet: the first run and the first account make theirs.")


def print_status(status: ServerStatus, *, console: Console | None = None) -> None:
    """Print the status, what stands in the way last, where it is seen."""
    out = console or Console()
    out.print(
        f"{escape(status.project)} at {status.endpoint}, installed code {short(status.code_hash)}", soft_wrap=True
    )
    out.print(f"SuperLink {_answers(status.superlink)}, gateway {_answers(status.gateway)}")
    for name, item in status.processes.items():
        running = "not running" if item["process"] is None else f"process {item['process']}"
        out.print(f"  {escape(name)}: {running}, started {item['starts']} time(s)")
    out.print(
        f"certificate {status.certificate_days} days, authority {status.authority_days} days, "
        f"disk {status.disk_free_bytes / 1e9:.1f} GB free"
    )
    for run in status.runs:
        _print_run(out, run, status.code_hash)
    for text in status.trouble:
        out.print(f"! {escape(text)}", style="bold red", soft_wrap=True)


def _print_run(out: Console, run: RunStatus, installed: str) -> None:
    asked = "" if run.wanted == "no" else f" (wanted: {run.wanted})"
    detail = f": {run.detail}" if run.detail else ""
    out.print(
        escape(f"run {run.name}{asked}: {run.state}, round {run.rounds_done} of {run.rounds_planned}{detail}"),
        soft_wrap=True,
    )
    if run.code_hash is not None:
        goes_on = run.wanted == "going" and not run.state.startswith("finished")
        other = f"; its next start takes the installed {short(installed)}" if run.code_hash != installed else ""
        out.print(f"  code {short(run.code_hash)}{other if goes_on else ''}", soft_wrap=True)
    if run.wanted != "no":
        for site in run.sites:
            reason = f": {site.reason}" if site.reason else ""
            out.print(escape(f"  {site.site}: {site.outcome} in round {site.server_round}{reason}"), soft_wrap=True)


def _answers(well: bool) -> str:
    return "answers" if well else "does not answer"
