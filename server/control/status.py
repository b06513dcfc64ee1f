"""How the server is, honestly: what answers, what is wanted, how far it is, what stands in the way."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from popmi_core.errors import PopmiError
from server.control.certificates import RENEW_DAYS, days_left
from server.control.contract import Control, FlowerRun, SuperLinkAway
from server.control.home import ServerHome, Wanted
from server.control.plans import read_code_hash, read_code_since, run_names
from server.control.records import open_record
from server.control.superlink import split_address
from server.dashboard.health import judge
from server.store import SiteRow
from server.store.looks import awaited_sites

WAITING = "waiting for approval"
HEALTH_SECONDS = 3.0
LOW_DISK = 5_000_000_000
"""Bytes below which the disk is called nearly full."""


@dataclass(frozen=True)
class SiteStatus:
    """What a site did in its last round."""

    site: str
    server_round: int
    outcome: str
    reason: str


@dataclass(frozen=True)
class RunStatus:
    """One run: ``wanted`` is what the operator asked for, ``state`` what is.

    ``code_hash`` is of the code it was last started with, which may be older than what is installed; None before that.
    ``code_since`` is when it was first started with that code, in seconds since 1970 UTC; None where nobody wrote it.
    """

    name: str
    wanted: str
    state: str
    detail: str
    rounds_done: int
    rounds_planned: int
    code_hash: str | None
    sites: tuple[SiteStatus, ...] = ()
    code_since: float | None = None


@dataclass(frozen=True)
class ServerStatus:
    """Everything `popmi server status` shows; ``trouble`` is what a person should look at, empty if nothing.

    ``code_hash`` is of the code that is installed, and that a run is started with from now on.
    """

    project: str
    endpoint: str
    superlink: bool
    gateway: bool
    code_hash: str
    runs: tuple[RunStatus, ...]
    waiting: tuple[str, ...]
    processes: dict[str, Any]
    certificate_days: int
    authority_days: int
    disk_free_bytes: int
    trouble: tuple[str, ...] = field(default=())

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1)


def server_status(home: ServerHome, control: Control, code_hash: str, *, now: float | None = None) -> ServerStatus:
    """Look at everything once.

    Raises:
        SetupError: If this is no server's home, or a file of it is unusable.
    """
    settings, wanted = home.settings(), home.wanted()
    try:
        starts, superlink = list(control.runs()), True
    except SuperLinkAway:
        starts, superlink = [], False
    moment = time.time() if now is None else now
    runs = tuple(_run_status(home, name, wanted, starts if superlink else None, moment) for name in run_names(home))
    current = [run for run in runs if wanted is not None and run.name == wanted.run]
    status = ServerStatus(
        project=settings.project,
        endpoint=settings.endpoint,
        superlink=superlink,
        gateway=gateway_answers(home, settings.endpoint),
        code_hash=code_hash,
        runs=runs,
        waiting=tuple(item.site for run in current for item in run.sites if WAITING in item.reason),
        processes=read_processes(home),
        certificate_days=days_left(home.certificate),
        authority_days=days_left(home.ca),
        disk_free_bytes=shutil.disk_usage(home.folder).free,
    )
    return ServerStatus(**{**status.__dict__, "trouble": tuple(_troubles(status, current))})


def gateway_answers(home: ServerHome, endpoint: str) -> bool:
    """Return whether the gateway answers at its public address, or on this machine where that does not lead back."""
    port = split_address(endpoint)[1]
    for place in (endpoint, f"127.0.0.1:{port}"):
        try:
            answer = httpx.get(
                f"https://{place}/health", verify=_trusting(home), timeout=HEALTH_SECONDS, trust_env=False
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            continue
        if answer.status_code == 200 and answer.text == "ok":
            return True
    return False


def read_processes(home: ServerHome) -> dict[str, Any]:
    """Return what `server up` says of its processes; a number whose process is gone is not shown as running."""
    try:
        told = json.loads((home.processes / "processes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: {**item, "process": item["process"] if _lives(item["process"]) else None} for name, item in told.items()
    }


def _run_status(
    home: ServerHome, name: str, wanted: Wanted | None, starts: list[FlowerRun] | None, now: float
) -> RunStatus:
    asked = wanted.state if wanted is not None and wanted.run == name else "no"
    code, since = read_code_hash(home, name), read_code_since(home, name)
    try:
        with open_record(home, name) as found:
            if found is None:
                return RunStatus(name, asked, *_unbegun(asked, starts, name), 0, 0, code, code_since=since)
            reader, run = found
            rounds = reader.rounds(run.id, since=run.rounds_done)
            rows = reader.sites(run.id, since=max(0, run.rounds_done - 1))
            newest = [row for row in rows if row.server_round >= run.rounds_done]
            state = judge(run, rounds, newest, now, awaited=awaited_sites(reader, run))
    except PopmiError as error:
        return RunStatus(name, asked, "unknown", str(error), 0, 0, code, code_since=since)
    word, detail = state.word, state.detail
    if word == "lost" and asked == "going":
        word, detail = "interrupted", f"{detail}; the keeper starts it again"
    if word == "stopped" and asked == "going":
        word, detail = "interrupted", "the keeper starts it again"
    return RunStatus(name, asked, word, detail, run.rounds_done, run.rounds_planned, code, _newest(rows), since)


def _unbegun(asked: str, starts: list[FlowerRun] | None, name: str) -> tuple[str, str]:
    if asked != "going":
        return "not begun", ""
    if starts is None:
        return "waiting", "the SuperLink is away"
    mine = [item for item in starts if item.name == name]
    if not mine:
        return "waiting", "the keeper has not started it yet"
    return "waiting", f"{mine[0].status} {mine[0].details}".strip()


def _newest(rows: tuple[SiteRow, ...]) -> tuple[SiteStatus, ...]:
    newest: dict[str, SiteRow] = {}
    for row in rows:
        held = newest.get(row.site)
        if held is None or row.server_round > held.server_round or held.outcome == "ok":
            newest[row.site] = row
    return tuple(
        SiteStatus(row.site, row.server_round, row.outcome, row.reason or "") for _, row in sorted(newest.items())
    )


def _troubles(status: ServerStatus, current: list[RunStatus]) -> list[str]:
    found = []
    if not status.superlink:
        found.append("the SuperLink does not answer: is `popmi server up` running?")
    if not status.gateway:
        found.append(f"the gateway does not answer at {status.endpoint}: no site can reach this server")
    found += [f"process {name} is not running" for name, item in status.processes.items() if item["process"] is None]
    if status.certificate_days < RENEW_DAYS:
        found.append(
            f"the certificate ends in {status.certificate_days} days: start `popmi server up` anew to renew it"
        )
    if status.authority_days < 365:
        found.append(f"the authority ends in {status.authority_days} days: every site will need a new kit then")
    if status.disk_free_bytes < LOW_DISK:
        found.append(f"the disk has {status.disk_free_bytes / 1e9:.1f} GB left")
    # The run's own code, which the site compares: what is installed may be newer.
    found += [
        f"site {site.site} is {WAITING} of code {short(run.code_hash)}"
        for run in current
        for site in run.sites
        if WAITING in site.reason
    ]
    words = ("failed", "unknown", "interrupted", "lost")
    return found + [f"run {run.name}: {run.state}: {run.detail}" for run in current if run.state in words]


def short(code_hash: str | None) -> str:
    """Return as much of a hash as two people compare."""
    return "unknown" if code_hash is None else code_hash[:12]


def _lives(process: object) -> bool:
    if not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _trusting(home: ServerHome) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(home.ca))
