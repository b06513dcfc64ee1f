"""What went wrong in a run, in the server's audit log: which site was put aside in which round, and why."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from popmi_core.audit import AuditLog
from popmi_core.errors import AuditError, RunError
from popmi_core.protocol import AUDIT_FILE, RunPlan
from server.results import RoundResult, SiteOutcome

LONGEST = 500
"""Letters of a reason that are kept: sites write them."""
WHO = "server app"
MOST_OWED = 100
"""Events that wait for room at most; the oldest are given up first."""


class FaultLog:
    """Notes faults, each as one line; a simulation has no server's home, so nothing is noted there.

    Args:
        plan: The run; the log lies beside ``plan.sites_file``.
        patiently: Calls what it is given, again and again while there is no room.
    """

    def __init__(self, plan: RunPlan, patiently: Callable[[Callable[[], None]], None]) -> None:
        self._run, self._patiently = plan.run, patiently
        self._log = None if plan.sites_file is None else AuditLog(Path(plan.sites_file).parent / AUDIT_FILE)
        self._refused: dict[str, str] = {}
        self._excluded: set[str] = set()
        self._owed: deque[tuple[str, dict[str, object]]] = deque(maxlen=MOST_OWED)

    def round(self, done: RoundResult) -> None:
        """Note every site whose answer of a round is not used, and a round that gave no model."""
        self.settle()
        for phase, outcomes in (("train", done.train), ("evaluate", done.evaluate)):
            for item in _faults(outcomes):
                self.note(f"site.{item.outcome}", item.reason, site=item.site, round=done.server_round, phase=phase)
        if done.fused is None:
            self.note("round.void", done.note, round=done.server_round)

    def refused(self, refused: Mapping[str, str]) -> None:
        """Note every site that is not let in, once for each reason."""
        for site, reason in sorted(refused.items()):
            if self._refused.get(site) != reason:
                self.note("site.not_let_in", reason, site=site)
        self._refused = dict(refused)

    def excluded(self, excluded: Mapping[str, str]) -> None:
        """Note from when on a run leaves sites out that the operator excluded, and when it asks them again."""
        for site, reason in sorted(excluded.items()):
            if site not in self._excluded:
                self.note("site.left_out", reason, site=site)
        for site in sorted(self._excluded - set(excluded)):
            self.note("site.asked_again", "the operator includes it again", site=site)
        self._excluded = set(excluded)

    def note(self, event: str, reason: str, **details: object) -> None:
        """Note one event.

        Raises:
            RunError: If it could not be written in the time there is for it.
        """
        log = self._log
        if log is not None:
            self._patiently(lambda: self._append(log, event, {**details, "reason": reason[:LONGEST]}))

    def owe(self, event: str, reason: str, **details: object) -> None:
        """Note one event as soon as there is room for it: nothing waits for that. ``at`` is when it happened."""
        if self._log is None:
            return
        self._owed.append((event, {**details, "reason": reason[:LONGEST], "at": round(time.time(), 3)}))
        self.settle()

    def settle(self) -> None:
        """Write down what is owed, as far as there is room."""
        log = self._log
        while log is not None and self._owed:
            try:
                self._append(log, *self._owed[0])
            except RunError:
                return
            self._owed.popleft()

    def _append(self, log: AuditLog, event: str, details: Mapping[str, object]) -> None:
        try:
            log.append(event, who=WHO, run=self._run, **details)
        except AuditError as error:
            raise RunError(str(error)) from error


def _faults(outcomes: Iterable[SiteOutcome]) -> list[SiteOutcome]:
    # A site that stopped in an earlier round stands in every later one, without a report.
    return [
        item for item in outcomes if item.outcome != "ok" and (item.outcome != "stopped" or item.report is not None)
    ]
