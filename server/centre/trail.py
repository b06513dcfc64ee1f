"""The audit log's copy for the pages: each line as it stands in the log, found by filters, its chain verified here.

``number`` is the line's place in the file. The chain is that of ``popmi_core.audit``: a line that was changed or taken
out of the copy shows, and so does one that had been changed in the log before it was copied. The copy's end may lie
before the log's: the keeper copies every few seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from popmi_core.audit import AuditEntry, parse_entry, verify_entries
from popmi_core.errors import AuditError
from server.centre.opening import writing
from server.centre.reaching import reaching
from server.centre.schema import AuditLine

WHERE = "audit log"
FULL_SECONDS = 300.0
BROKEN_SECONDS = 30.0
"""For so long a chain that was found broken is taken to be so still: many look, and each look reads the whole log."""
"""Seconds after which a chain is verified from its first line again; until then only what is new is."""
UNREADABLE = "(unreadable)"
"""The event of a line that is no entry."""
_PIECE = 1000


@dataclass(frozen=True)
class TrailLine:
    """One line of the log; ``details`` is all that it tells beside what has a name here."""

    number: int
    time: float
    event: str
    who: str | None
    run: str | None
    site: str | None
    details: dict[str, Any]
    digest: str
    line: str


@dataclass(frozen=True)
class Filter:
    """Which lines are wanted; None: all. Times are seconds since 1970 UTC.

    ``event`` may end in ``.``: then it is what an event begins with. ``text`` is looked for in the whole line, capital
    or not.
    """

    event: str | None = None
    who: str | None = None
    run: str | None = None
    site: str | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None


@dataclass(frozen=True)
class Verified:
    """What became of a verification: ``trouble`` is empty where the chain is whole.

    ``at`` is when it was last verified from its first line, ``head`` the last line's hash.
    """

    lines: int
    head: str
    at: float
    trouble: str = ""


def mirror(engine: Engine, lines: Sequence[tuple[int, str]]) -> int:
    """Copy lines (place in the file, text without its end) that are not there yet; return how many were new.

    Raises:
        RunError: If the centre cannot be written now.
    """
    if not lines:
        return 0
    with reaching(engine, "copy the audit log"), writing(engine) as session:
        numbers = [number for number, _ in lines]
        there = set(session.scalars(select(AuditLine.number).where(AuditLine.number.in_(numbers))))
        new = [_row(number, text) for number, text in lines if number not in there]
        session.add_all(new)
        return len(new)


def mirrored(engine: Engine) -> tuple[int, str]:
    """Return the place and the hash of the last line that is copied; 0 and nothing before the first.

    Raises:
        RunError: If the centre cannot be read now.
    """
    with reaching(engine, "read the audit log"), Session(engine) as session:
        last = select(AuditLine.number, AuditLine.digest).order_by(AuditLine.number.desc()).limit(1)
        found = session.execute(last).first()
        return (0, "") if found is None else (found.number, found.digest)


def forget_copy(engine: Engine) -> int:
    """Take the copy out, for the keeper to copy the log from its first line; return how many lines it had.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(engine, "take the audit log's copy out"), writing(engine) as session:
        count = session.scalar(select(func.count()).select_from(AuditLine)) or 0
        session.execute(delete(AuditLine))
        return count


def trail(
    engine: Engine, wanted: Filter | None = None, *, before: int | None = None, limit: int | None = 100
) -> tuple[TrailLine, ...]:
    """Return lines, newest first; ``before``: only those with a smaller number; ``limit`` None: all.

    Raises:
        RunError: If the centre cannot be read now.
    """
    asked = _filtered(select(AuditLine), wanted or Filter()).order_by(AuditLine.number.desc())
    if before is not None:
        asked = asked.where(AuditLine.number < min(before, 2**31 - 1))
    with reaching(engine, "read the audit log"), Session(engine) as session:
        return tuple(_told(item) for item in session.scalars(asked if limit is None else asked.limit(limit)))


def whole_trail(engine: Engine, wanted: Filter | None = None) -> Iterator[TrailLine]:
    """Yield all lines, the oldest first, fetched piece by piece: a log of years is never held as a whole.

    Raises:
        RunError: If the centre cannot be read now; with the first line or a later one.
    """
    after = 0
    while True:
        asked = _filtered(select(AuditLine), wanted or Filter()).where(AuditLine.number > after)
        with reaching(engine, "read the audit log"), Session(engine) as session:
            piece = [_told(item) for item in session.scalars(asked.order_by(AuditLine.number).limit(_PIECE))]
        yield from piece
        if len(piece) < _PIECE:
            return
        after = piece[-1].number


def count_trail(engine: Engine, wanted: Filter | None = None) -> int:
    """Return how many lines there are.

    Raises:
        RunError: If the centre cannot be read now.
    """
    asked = _filtered(select(func.count()).select_from(AuditLine), wanted or Filter())
    with reaching(engine, "read the audit log"), Session(engine) as session:
        return session.scalar(asked) or 0


def events_of(engine: Engine) -> tuple[str, ...]:
    """Return the events that occur, in alphabetical order.

    Raises:
        RunError: If the centre cannot be read now.
    """
    with reaching(engine, "read the audit log"), Session(engine) as session:
        return tuple(session.scalars(select(AuditLine.event).distinct().order_by(AuditLine.event)))


@dataclass
class Verifier:
    """Verifies the chain of the copy: from its first line every few minutes, and what is new at every look.

    Safe for threads.
    """

    clock: Callable[[], float] = time.time
    _last: AuditEntry | None = None
    _found: Verified | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, engine: Engine) -> Verified:
        """Return whether the chain is whole now.

        Raises:
            RunError: If the centre cannot be read now.
        """
        with self._lock:
            now = self.clock()
            found = self._found
            # Broken at a line, not by what is missing since: that is looked for from the first line next time.
            if found is not None and found.trouble and not found.head and 0 <= now - found.at < BROKEN_SECONDS:
                return found
            old = self._found is None or self._found.trouble or now - self._found.at >= FULL_SECONDS
            after, at = (None, now) if old or self._found is None else (self._last, self._found.at)
            begun = 0 if after is None else after.number
            try:
                with reaching(engine, "read the audit log"), Session(engine) as session:
                    self._last = verify_entries(_entries(session, begun), where=WHERE, after=after)
                    lines = session.scalar(select(func.count()).select_from(AuditLine)) or 0
            except AuditError as error:
                self._found = Verified(mirrored(engine)[0], "", now, str(error))
                return self._found
            number, head = (0, "") if self._last is None else (self._last.number, self._last.digest)
            # A line taken out among those that were verified before.
            trouble = (
                "" if lines == number else f"{WHERE}: {lines} lines are here, expected {number}. Some were taken out."
            )
            self._found = Verified(number, head, at, trouble)
            return self._found


def _entries(session: Session, after: int) -> Iterator[AuditEntry]:
    asked = select(AuditLine.number, AuditLine.line).where(AuditLine.number > after).order_by(AuditLine.number)
    expected = after
    for number, line in session.execute(asked.execution_options(yield_per=_PIECE)):
        expected += 1
        if number != expected:
            raise AuditError(f"{WHERE}, line {expected}: is missing here. It was taken out of the database.")
        yield parse_entry(line, where=WHERE, number=number)


def _filtered(asked: Select[Any], wanted: Filter) -> Select[Any]:
    for name in ("who", "run", "site"):
        if (value := getattr(wanted, name)) is not None:
            asked = asked.where(getattr(AuditLine, name) == value)
    if wanted.event is not None:
        begins = wanted.event.endswith(".")
        asked = asked.where(
            AuditLine.event.startswith(wanted.event, autoescape=True) if begins else AuditLine.event == wanted.event
        )
    if wanted.since is not None:
        asked = asked.where(AuditLine.time >= wanted.since)
    if wanted.until is not None:
        asked = asked.where(AuditLine.time <= wanted.until)
    if wanted.text:
        asked = asked.where(AuditLine.line.icontains(wanted.text, autoescape=True))
    return asked


def _row(number: int, line: str) -> AuditLine:
    # A NUL is no text for PostgreSQL, and in an entry it is escaped: such a line is none, and says so.
    text = line.replace("\x00", "�")
    try:
        entry = parse_entry(text, where=WHERE, number=number)
    except AuditError:
        return AuditLine(number=number, time=0.0, event=UNREADABLE, digest="", line=text)
    told = {name: _short(entry.details.get(name)) for name in ("who", "run", "site")}
    event = _short(entry.event) or ""
    return AuditLine(number=number, time=entry.time, event=event[:80], digest=entry.digest[:64], line=text, **told)


def _short(value: object) -> str | None:
    return None if value is None else str(value).replace("\x00", "�")[:120]


def _told(row: AuditLine) -> TrailLine:
    try:
        details = dict(json.loads(row.line)["details"])
    except (ValueError, KeyError, TypeError):
        details = {}
    for name in ("who", "run", "site"):
        details.pop(name, None)
    names = ("number", "time", "event", "who", "run", "site", "digest", "line")
    return TrailLine(details=details, **{name: getattr(row, name) for name in names})
