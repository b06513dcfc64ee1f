"""Carries out what persons order on the pages, with the very functions of `popmi server`.

The pages reach neither home nor SuperLink: they write an order into the centre. This takes the oldest first, does it,
and answers. **Exactly once**: an order that was taken says so in its row. Where a keeper was ended between the act and
its answer, the next one finds it taken: what is done already is answered as done, and what may be done twice is done
again (a stop, an exclusion, a revocation). Nothing is begun twice: a run's name is part of its order, and the audit log
says which order began it. An order is refused whose giver may give none any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy.engine import Engine

from popmi_core.deployment.enrolment import Enrolment, parse_enrolment
from popmi_core.errors import AuditError, PopmiError
from server.centre.kinds import Confirm, OfRound, OfRun, OfSite, Pin, Start, WithReason, parse_order
from server.centre.orders import OrderRow, decide, find, take
from server.control.contract import Control
from server.control.entitled import began_before, concerns_another, no_longer_allowed
from server.control.exporting import Exports
from server.control.home import LONGEST_REASON, Asker, ServerHome
from server.control.kits import post_kit
from server.control.leaving import exclude, include
from server.control.operate import resume, start, stop
from server.control.pins import pin, read_pins, unpin
from server.control.remarking import write_remarks
from server.control.revoking import revoke
from server.control.sites import add_site, confirm

log = logging.getLogger("popmi.keeper")
Told = TypeVar("Told", bound=BaseModel)
EXPIRES = 3600.0
"""Seconds after which an order is refused that no keeper took up: by then it may surprise. A revocation never is."""
NOT_NOW = "nobody carried it out within an hour, and by now it may surprise. Give it again if it is still wanted."
HALF = (
    "a keeper was ended while it carried this out, over an hour ago. Look whether it was done; if not, give it again."
)
LOOK = "A keeper was ended while it carried this out: look whether it was done."


@dataclass(frozen=True)
class _Order:
    """An order with its arguments parsed; ``again``: a keeper took it up before."""

    row: OrderRow
    told: BaseModel
    by: Asker
    again: bool


class Carrier:
    """Carries orders out. One per server.

    Args:
        home: The server's home.
        control: The SuperLink.
        centre: Where orders come from.
        exports: Makes ONNX files, each in a process of its own.
        clock: Seconds since 1970 UTC.
    """

    def __init__(
        self,
        home: ServerHome,
        control: Control,
        centre: Engine,
        *,
        exports: Exports | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.control, self.centre = home, control, centre
        self._exports, self._clock = exports or Exports(home), clock
        self._acts: dict[str, Callable[[_Order], str | None]] = {
            "start": self._start, "stop": self._stop, "resume": self._resume, "exclude": self._exclude,
            "include": self._include, "revoke": self._revoke, "invite": self._invite, "confirm": self._confirm,
            "pin": self._pin, "unpin": self._unpin, "onnx": self._onnx,
        }  # fmt: skip

    def look(self) -> None:
        """Carry out every order that waits, and write down what was done to accounts.

        Raises:
            RunError: If the centre cannot be read or written now.
        """
        write_remarks(self.home, self.centre)
        for number, answer, done in self._exports.ended():
            row = find(self.centre, number)
            if row is not None and not done:
                self._note_refused(row, answer)
            decide(self.centre, number, "done" if done else "refused", answer, clock=self._clock)
        while (taken := take(self.centre, besides=self._exports.numbers, clock=self._clock)) is not None:
            row, again = taken
            said, done = self._carry(row, again)
            if said is not None:
                if not done:
                    self._note_refused(row, said)
                decide(self.centre, row.id, "done" if done else "refused", said, clock=self._clock)

    def close(self) -> None:
        """End what is still being made; its orders wait for the next keeper."""
        self._exports.close()

    def _carry(self, row: OrderRow, again: bool) -> tuple[str | None, bool]:
        """Return the answer and whether it is done; None where the answer comes later."""
        if row.kind != "revoke" and self._clock() - row.created > EXPIRES:
            return HALF if again else NOT_NOW, False
        if said := no_longer_allowed(self.centre, row):
            return f"{said} {LOOK}" if again else said, False
        try:
            if said := concerns_another(self.home, row):
                return said, False
            told = parse_order(row.kind, row.arguments)
            return self._acts[row.kind](_Order(row, told, Asker(row.who, row.via, row.id), again)), True
        except PopmiError as error:
            log.warning("order %d (%s) of %s: %s", row.id, row.kind, row.who, error)
            return str(error), row.kind == "revoke" and self._is_revoked(row)
        except Exception as error:
            # An order that cannot be answered would be tried for ever, and every other one would wait behind it.
            log.exception("order %d (%s) of %s", row.id, row.kind, row.who)
            return f"unexpected {type(error).__name__}: look into processes/keeper.log at the server.", False

    def _note_refused(self, row: OrderRow, answer: str) -> None:
        try:
            by = Asker(row.who, row.via, row.id)
            self.home.note("order.refused", by, kind=row.kind, about=row.about, reason=answer[:LONGEST_REASON])
        except AuditError as error:
            # Nothing was done; the answer itself stands in the order.
            log.warning("order %d: its refusal is not in the audit log: %s", row.id, error)

    def _is_revoked(self, row: OrderRow) -> bool:
        try:
            entry = self.home.sites().get(str(row.arguments.get("site")))
        except PopmiError:
            return False
        return entry is not None and entry.state == "revoked"

    def _start(self, order: _Order) -> str:
        told = _as(Start, order)
        if not (order.again and began_before(self.home, order.row, told)):
            start(self.home, told.config, told.name, by=order.by)
        elif (wanted := self.home.wanted()) is None or wanted.run != told.name:
            # The keeper before was ended between the plan and its being wanted.
            resume(self.home, told.name, by=order.by)
        return f"run {told.name} is wanted; it starts within seconds"

    def _stop(self, order: _Order) -> str:
        return f"run {stop(self.home, _as(OfRun, order).run, by=order.by)} rests after the round in flight"

    def _resume(self, order: _Order) -> str:
        return f"run {resume(self.home, _as(OfRun, order).run, by=order.by)} goes on after its last round"

    def _exclude(self, order: _Order) -> str:
        told = _as(WithReason, order)
        exclude(self.home, told.site, reason=told.reason, by=order.by)
        return f"{told.site} is left out from the next round on; its key stays good"

    def _include(self, order: _Order) -> str:
        site = _as(OfSite, order).site
        entry = self.home.sites().get(site)
        if not (order.again and entry is not None and entry.excluded is None):
            include(self.home, site, by=order.by)
        return f"{site} takes part again from the next round on"

    def _revoke(self, order: _Order) -> str:
        told = _as(WithReason, order)
        revoke(self.home, self.control, told.site, reason=told.reason, by=order.by)
        return f"{told.site} is cut off, and its key is never let in again"

    def _invite(self, order: _Order) -> str:
        site = _as(OfSite, order).site
        post_kit(self.centre, site, add_site(self.home, site, by=order.by))
        return f"the kit of {site} is made: fetch it here and send it to the site. It holds no secret"

    def _confirm(self, order: _Order) -> str:
        told = _as(Confirm, order)

        def agreed(enrolment: Enrolment) -> bool:
            return enrolment.fingerprint.endswith(told.read_out)

        how = f"on the pages by {order.row.who}, who typed its last letters as the site read them out"
        enrolment = parse_enrolment(told.enrolment, source="the file")
        entry = confirm(self.home, self.control, enrolment, agreed=agreed, how=how, by=order.by)
        return f"{enrolment.site} is enrolled as node {entry.node_id}, key {enrolment.fingerprint}"

    def _pin(self, order: _Order) -> str:
        told = _as(Pin, order)
        made = pin(self.home, told.run, told.round, note=told.note, by=order.by)
        return f"run {told.run}, round {made.round} is pinned; sha256 {made.sha256}"

    def _unpin(self, order: _Order) -> str:
        run = _as(OfRun, order).run
        if not (order.again and run not in read_pins(self.home)):
            unpin(self.home, run, by=order.by)
        return f"run {run} has no pinned model"

    def _onnx(self, order: _Order) -> None:
        told = _as(OfRound, order)
        self._exports.begin(order.row.id, told.run, told.round, by=order.by)


def _as(kind: type[Told], order: _Order) -> Told:
    told = order.told
    assert isinstance(told, kind)
    return told
