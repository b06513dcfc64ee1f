"""Say honestly how a run is: degraded is never shown as fine, a dead run never as running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.store import RoundRow, RunSummary, SiteRow

SILENT_SECONDS = 30.0  # six missed heartbeats


@dataclass(frozen=True)
class State:
    """A run's state: a ``word``, its ``tone`` (good, warn, bad, idle) and the ``detail`` a person needs."""

    word: str
    tone: str
    detail: str = ""


def is_silent(status: str, heartbeat: float, now: float) -> bool:
    """Say whether a run that claims to be alive gave no sign of life for too long."""
    return status in ("waiting", "running") and now - heartbeat > SILENT_SECONDS


def judge(run: RunSummary, rounds: Sequence[RoundRow], sites: Sequence[SiteRow], now: float) -> State:
    """Return the state of ``run``; ``rounds`` and ``sites`` need only hold the last finished round and later."""
    faults = current_faults(run, rounds, sites)
    if run.status == "failed":
        return State("failed", "bad", run.reason or "no reason was recorded")
    if run.status == "stopped":
        return State("stopped", "warn", run.reason or f"after round {run.rounds_done} of {run.rounds_planned}")
    if is_silent(run.status, run.heartbeat, now):
        return State("lost", "bad", f"no sign of life for {span(now - run.heartbeat)}; its process was probably ended")
    if run.status == "waiting":
        return State("waiting", "idle", "the first round has not begun")
    if faults:
        said = [run.reason] if run.status == "finished" and run.reason else []
        return State(f"{run.status}, degraded", "warn", "; ".join([*said, *faults]))
    if run.status == "finished" and run.rounds_done < run.rounds_planned:
        return State("finished early", "warn", run.reason or f"round {run.rounds_done} of {run.rounds_planned}")
    return State(run.status, "good", run.reason or "")


def current_faults(run: RunSummary, rounds: Sequence[RoundRow], sites: Sequence[SiteRow]) -> list[str]:
    """Return what is wrong now: a site's newest word counts, and a void round does."""
    newest: dict[str, SiteRow] = {}
    for row in sites:
        held = newest.get(row.site)
        # A failed phase of the same round is not made good by the other phase.
        if held is None or row.server_round > held.server_round or held.outcome == "ok":
            newest[row.site] = row
    faults = [
        f"site {name} {row.outcome}" + (f": {row.reason}" if row.reason else "")
        for name, row in sorted(newest.items())
        if row.outcome != "ok"
    ]
    finished = [item for item in rounds if item.finished is not None and item.server_round > 0]
    if finished and finished[-1].outcome != "ok":
        faults.insert(0, f"round {finished[-1].server_round} {finished[-1].outcome}")
    if finished and run.strategy != "pooled":
        # The pooled reference trains in one place, so its sites send nothing of their own.
        faults += [f"site {name}: nothing recorded" for name in run.sites if name not in newest]
    return faults


def span(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
