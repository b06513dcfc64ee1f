"""Say honestly how a run is: degraded is never shown as fine, a dead run never as running."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.dashboard.words import N_, OUTCOMES, Said, said, word
from server.store import RoundRow, RunSummary, SiteRow

SILENT_SECONDS = 30.0  # six missed heartbeats
LAST_ROUNDS = 10
"""Rounds by whose length the time left is estimated."""


@dataclass(frozen=True)
class State:
    """A run's state: a ``word``, its ``tone`` (good, warn, bad, idle) and the ``detail`` a person needs.

    ``said`` is the detail in sentences that can be translated; what a run or a site wrote stays as written.
    """

    word: str
    tone: str
    detail: str = ""
    said: tuple[Said, ...] = ()


WORDS = (
    N_("waiting"), N_("running"), N_("running, degraded"), N_("finished"), N_("finished, degraded"),
    N_("finished early"), N_("stopped"), N_("failed"), N_("lost"), N_("unreadable"), N_("gone"),
)  # fmt: skip
"""Every word of a state."""


def is_silent(status: str, heartbeat: float, now: float) -> bool:
    """Say whether a run that claims to be alive gave no sign of life for too long."""
    return status in ("waiting", "running") and now - heartbeat > SILENT_SECONDS


def is_held_up(run: RunSummary, rounds: Sequence[RoundRow], awaited: Sequence[str]) -> bool:
    """Say whether a run waits for sites between two rounds; once a round goes on, that is over."""
    under_way = any(row.finished is None and row.server_round > run.rounds_done for row in rounds)
    return run.status == "running" and bool(awaited) and not under_way


def judge(
    run: RunSummary,
    rounds: Sequence[RoundRow],
    sites: Sequence[SiteRow],
    now: float,
    *,
    joined: Collection[str] | None = None,
    awaited: Sequence[str] = (),
) -> State:
    """Return the state of ``run``; ``rounds`` and ``sites`` need only hold the last finished round and later.

    ``joined`` are the sites that are in, for a run that waits for its first round; None where that is not known.
    ``awaited`` are the sites that a run waits for between two rounds.
    """
    faults = _faults(run, rounds, sites)
    reason = [_as_written(run.reason)] if run.reason else []
    gone_so_far = {"done": run.rounds_done, "planned": run.rounds_planned}
    if run.status == "failed":
        return _state("failed", "bad", *(reason or [said(N_("no reason was recorded"))]))
    if run.status == "stopped":
        return _state("stopped", "warn", *(reason or [said(N_("after round %(done)s of %(planned)s"), **gone_so_far)]))
    if is_silent(run.status, run.heartbeat, now):
        silence = N_("no sign of life for %(time)s; its process was probably ended")
        return _state("lost", "bad", said(silence, time=span(now - run.heartbeat)))
    if run.status == "waiting":
        return _state("waiting", "idle", _waits_for(awaited) if awaited else _awaited(run, joined))
    if is_held_up(run, rounds, awaited):
        return _state("waiting", "warn", _waits_for(awaited), *faults)
    if faults:
        return _state(f"{run.status}, degraded", "warn", *(reason if run.status == "finished" else []), *faults)
    if run.status == "finished" and run.rounds_done < run.rounds_planned:
        return _state("finished early", "warn", *(reason or [said(N_("round %(done)s of %(planned)s"), **gone_so_far)]))
    return _state(run.status, "good", *reason)


def current_faults(run: RunSummary, rounds: Sequence[RoundRow], sites: Sequence[SiteRow]) -> list[str]:
    """Return what is wrong now: a site's newest word counts, and a void round does."""
    return [str(fault) for fault in _faults(run, rounds, sites)]


def time_left(run: RunSummary, rounds: Sequence[RoundRow], state: State) -> float | None:
    """Return an estimate in seconds: the median of the last ten rounds times the rounds left.

    None for a run that does not go on, and before the first round has ended.
    """
    took = [row.seconds_total for row in rounds if row.finished is not None and row.seconds_total is not None]
    if not state.word.startswith("running") or not took:
        return None
    return statistics.median(took[-LAST_ROUNDS:]) * max(0, run.rounds_planned - run.rounds_done)


def _state(word: str, tone: str, *sentences: Said) -> State:
    return State(word, tone, "; ".join(map(str, sentences)), sentences)


def _as_written(text: str) -> Said:
    return Said("%(text)s", {"text": text})


def _awaited(run: RunSummary, joined: Collection[str] | None) -> Said:
    missing = [site for site in run.sites if joined is not None and site not in joined]
    if not missing:
        return said(N_("the first round has not begun"))
    return _waits_for(missing)


def _waits_for(sites: Sequence[str]) -> Said:
    if len(sites) == 1:
        return said(N_("waiting for 1 site: %(sites)s"), sites=sites[0])
    return said(N_("waiting for %(number)s sites: %(sites)s"), number=len(sites), sites=", ".join(sites))


def _faults(run: RunSummary, rounds: Sequence[RoundRow], sites: Sequence[SiteRow]) -> list[Said]:
    newest: dict[str, SiteRow] = {}
    for row in sites:
        held = newest.get(row.site)
        # A failed phase of the same round is not made good by the other phase.
        if held is None or row.server_round > held.server_round or held.outcome == "ok":
            newest[row.site] = row
    faults = [_fault(row) for _, row in sorted(newest.items()) if row.outcome != "ok"]
    finished = [item for item in rounds if item.finished is not None and item.server_round > 0]
    if finished and finished[-1].outcome != "ok":
        last = finished[-1]
        outcome = word(last.outcome, OUTCOMES)
        faults.insert(0, said(N_("round %(number)s %(outcome)s"), number=last.server_round, outcome=outcome))
    if finished and run.strategy != "pooled":
        # The pooled reference trains in one place, so its sites send nothing of their own.
        faults += [said(N_("site %(site)s: nothing recorded"), site=name) for name in run.sites if name not in newest]
    return faults


def _fault(row: SiteRow) -> Said:
    values = {"site": row.site, "outcome": word(row.outcome, OUTCOMES)}
    if row.reason:
        return said(N_("site %(site)s %(outcome)s: %(reason)s"), **values, reason=row.reason)
    return said(N_("site %(site)s %(outcome)s"), **values)


def span(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
