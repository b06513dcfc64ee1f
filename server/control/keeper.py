"""The keeper: the run that is wanted goes on, whatever was killed, until its record says how it ended.

Flower cannot resume: a run whose SuperLink or server app was killed is over for it. The keeper starts the same run
again, with ``plan.resume``, and the server app goes on after its last checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from popmi_core.errors import AuditError, PopmiError
from server.control.contract import Control, FlowerRun, SuperLinkAway
from server.control.doorkeeper import Doorkeeper
from server.control.home import ServerHome, Wanted
from server.control.plans import is_held, opened_at, reopen_plan, write_code_hash
from server.control.records import Standing, end_record, standing
from server.control.reserve import keep_reserve
from server.control.revoking import cut_off_revoked
from server.control.tally import RefusalWatch

log = logging.getLogger("popmi.keeper")
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds between the end of a run and its next start; doubled until a round is done."""
LOOK_SECONDS = 2.0
MOST_FALLS = 5
"""How often a run starts again without a round between that failed by an unforeseen error or was killed."""
SETTLING = 15.0
"""Seconds without a heartbeat in the record after which its writer is taken for dead: three missed ones."""
ENDINGS = frozenset({"run.finished", "run.failed", "run.given_up"})


class Keeper:
    """Keeps the wanted run going. One per server.

    Args:
        home: The server's home.
        control: The SuperLink.
        pack: Returns the packed bundle and its hash.
        confirm_from: Folder whose enrolments are confirmed by nobody; simulations on one machine only.
        refused: Where the gateway counts what it refuses; by default in the home.
        clock: Seconds since 1970 UTC.
    """

    def __init__(
        self,
        home: ServerHome,
        control: Control,
        *,
        pack: Callable[[], tuple[bytes, str]],
        confirm_from: Path | None = None,
        refused: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.control = home, control
        self._door = None if confirm_from is None else Doorkeeper(home, control, confirm_from, clock=clock)
        self._refused = RefusalWatch(home, refused or home.refused, clock=clock)
        self._pack, self._clock = pack, clock
        self._wanted: Wanted | None = None
        self._pause, self._falls = FIRST_PAUSE, 0
        # When the run's last start was seen to have ended; rounds done when last seen, and when a stop was asked for.
        self._ended: float | None = None
        self._rounds_done: int | None = None
        self._begun_at: int | None = None
        # Whether the SuperLink was away since the last start: its own end takes every server app with it.
        self._link_lost = False
        self._said: set[str] = set()

    def run(self, ended: threading.Event, *, every: float = LOOK_SECONDS) -> None:
        """Look after the run until ``ended`` is set."""
        self.home.note("keeper.started", confirms_by_itself=self._door is not None)
        while not ended.is_set():
            try:
                self.look()
                self._say_looked()
            except SuperLinkAway as error:
                self._once("superlink.away", str(error))
            except PopmiError as error:
                # A full disk or a database that is away passes; the keeper must still be there then.
                self._once("keeper.trouble", str(error))
            ended.wait(every)
        self.home.note("keeper.ended")

    def look(self) -> None:
        """Do what is to be done now, once.

        Raises:
            SuperLinkAway: If the SuperLink does not answer; nothing was changed.
            PopmiError: If the home or the record cannot be read or written now.
        """
        try:
            runs = self.control.runs()
        except SuperLinkAway:
            self._link_lost = True
            raise
        # First of all: what stands in the way of anything else must not keep a stolen key in.
        cut_off_revoked(self.home, self.control)
        self._forget("superlink.away", "superlink.back")
        self._refused.look()
        if self._door is not None:
            self._door.look()
        wanted = self.home.wanted()
        if wanted is not None:
            self._follow(wanted, runs)
        self._forget("keeper.trouble", "keeper.well")

    def _follow(self, wanted: Wanted, runs: Sequence[FlowerRun]) -> None:
        if wanted != self._wanted:
            self._wanted, self._pause, self._falls, self._ended = wanted, FIRST_PAUSE, 0, None
            self._rounds_done = self._begun_at = None
            self._said -= ENDINGS
        stand = standing(self.home, wanted.run)
        active = [run for run in runs if run.active and run.name == wanted.run]
        # Of two starts of one run the newer is kept; a run that nobody wants takes the sites' time.
        for run in [run for run in runs if run.active and run not in active] + active[1:]:
            self._stop(run, "nobody wants it")
        if wanted.state == "stopped":
            self._bring_to_rest(active, stand)
        elif active:
            self._ended = None
            self._see_progress(active[0], stand)
        elif not self._is_over(wanted, stand):
            self._start_again(wanted, stand, [run for run in runs if run.name == wanted.run])

    def _bring_to_rest(self, active: Sequence[FlowerRun], stand: Standing) -> None:
        if self._begun_at is None:
            self._begun_at = stand.rounds_done
        # The gap between two rounds may be too short to be seen: a further round done says so as well.
        if active and (not stand.open_round or stand.rounds_done > self._begun_at):
            self._stop(active[0], f"the operator asked for it; round {stand.rounds_done} is done")

    def _see_progress(self, run: FlowerRun, stand: Standing) -> None:
        if self._rounds_done is not None and stand.rounds_done > self._rounds_done:
            self._pause, self._falls = FIRST_PAUSE, 0
        self._rounds_done = stand.rounds_done
        # A heartbeat from before the plan was opened for this start is the one of the start before.
        silent = opened_at(self.home, run.name) < stand.heartbeat < self._clock() - SETTLING
        if silent and stand.interrupted and not is_held(self.home, run.name):
            # Killed: Flower takes a minute more to notice. One that only waits for room on a disk holds its file.
            self._stop(run, "its server app is gone")

    def _is_over(self, wanted: Wanted, stand: Standing) -> bool:
        if stand.status == "finished":
            self._once("run.finished", stand.reason, run=wanted.run, rounds=stand.rounds_done)
            return True
        if stand.interrupted and self._falls >= MOST_FALLS and not is_held(self.home, wanted.run):
            return self._give_up_killed(wanted, stand)
        # What failed before the operator asked to go on is asked to go on.
        if stand.status != "failed" or (stand.finished is not None and stand.finished < wanted.since):
            return False
        if not stand.fell:
            self._once("run.failed", stand.reason, run=wanted.run, rounds=stand.rounds_done)
            return True
        if self._falls >= MOST_FALLS:
            self._once("run.given_up", stand.reason, run=wanted.run, rounds=stand.rounds_done, falls=self._falls)
            return True
        return False

    def _give_up_killed(self, wanted: Wanted, stand: Standing) -> bool:
        # Most likely for want of memory, and by whatever was asked of it: it would be killed for ever.
        reason = (
            f"its server app was killed {self._falls} times on end without a round between. Look at the memory the "
            "runner may take and at what the sites send, then resume the run."
        )
        end_record(self.home, wanted.run, reason)
        self._once("run.given_up", reason, run=wanted.run, rounds=stand.rounds_done, falls=self._falls)
        return True

    def _start_again(self, wanted: Wanted, stand: Standing, before: Sequence[FlowerRun]) -> None:
        now = self._clock()
        if self._ended is None:
            self._ended = now
            if before:
                self.home.note(
                    "run.ended", run=wanted.run, run_id=before[0].run_id, status=before[0].status,
                    details=before[0].details[:500], record=stand.status, rounds=stand.rounds_done,
                )  # fmt: skip
        if before and now < self._ended + self._pause:
            return
        alive = stand.interrupted and now - stand.heartbeat < SETTLING
        if alive or is_held(self.home, wanted.run):
            # Its server app is still there, and two at one record would write into each other's rounds.
            return
        bundle, code = self._pack()
        changed = write_code_hash(self.home, wanted.run, code)
        reopen_plan(self.home, wanted.run, resume=stand.begun)
        self.home.note("run.starting", run=wanted.run, resume=stand.begun, code_hash=code, code_changed=changed)
        run_id = self.control.start_run(wanted.run, bundle)
        self.home.note("run.started", run=wanted.run, run_id=run_id, after_round=stand.rounds_done)
        self._falls += stand.fell or (bool(before) and stand.interrupted and not self._link_lost)
        self._ended, self._rounds_done, self._link_lost = None, stand.rounds_done, False
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if before else FIRST_PAUSE

    def _stop(self, run: FlowerRun, why: str) -> None:
        self.home.note("run.stopping", run=run.name, run_id=run.run_id, reason=why)
        self.control.stop_run(run.run_id)

    def _say_looked(self) -> None:
        """Touch a file for health checks: a keeper that is stuck, or can do nothing, shows by its age."""
        try:
            keep_reserve(self.home.reserve)
            self.home.looked.touch()
        except OSError as error:
            log.debug("no sign of life could be given: %s", error.strerror)

    def _once(self, event: str, text: str, **details: Any) -> None:
        """Write an event down the first time it happens on end."""
        if event in self._said:
            return
        log.warning("%s: %s", event, text)
        try:
            self.home.note(event, reason=text, **details)
        except AuditError as error:
            # Nothing was done; the disk may have room again at the next look.
            log.warning("%s", error)
            return
        self._said.add(event)

    def _forget(self, event: str, over: str) -> None:
        if event in self._said:
            self.home.note(over)
            self._said.discard(event)
