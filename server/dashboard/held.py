"""Runs held in memory for all viewers: read once, then only what a new round brings.

A viewer gets a value that never changes under its hands; a change of the record makes a new one, which takes over
the rounds that still hold. The least recently seen run is let go of first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sqlalchemy import Connection, Row

from popmi_core.errors import RunError
from server.dashboard.blocks import Block, SiteTable
from server.dashboard.catalogue import Catalogue
from server.store import RoundRow, RunReader, RunSummary, columns

FIGURES = ("auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece", "nll", "loss", "rotation_consistency")
"""The figures with a curve; all others are read for the round that is looked at."""
PHASES = ("train", "evaluate", "fuse", "total")
"""Parts of a round; training and evaluation are added up over the sites."""
MOST_RUNS = 12
"""Runs held at once; ``nbytes`` tells how much memory they take."""

Points = dict[str, list[tuple[int, float | None]]]


@dataclass(frozen=True)
class Held:
    """A run as it stood at ``run.revision``; figures of finished rounds only, sites' outcomes of the open one too.

    ``weights`` are the sites' shares of the average, ``seconds`` those of each of ``PHASES``, by round.
    ``epoch`` changes when something told before no longer holds, as after a resumption from an earlier round.
    """

    epoch: str
    run: RunSummary
    marks: tuple[columns.Mark, ...]
    rounds: tuple[RoundRow, ...]
    figures: Mapping[tuple[str, str], Block]
    weights: Block
    seconds: Block
    sites: SiteTable

    @property
    def done(self) -> int:
        """The last finished round."""
        return self.run.rounds_done

    @property
    def nbytes(self) -> int:
        """Memory of the number tables in bytes, a round counted as 2,000."""
        blocks = sum(block.nbytes for block in (*self.figures.values(), self.weights, self.seconds))
        return blocks + self.sites.nbytes + 2000 * len(self.rounds)


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    looked: float = 0.0
    held: Held | None = None


class HeldRuns:
    """The runs of a catalogue, each as fresh as the question for it.

    Args:
        catalogue: Where the runs are.
        most: How many to hold.
    """

    def __init__(self, catalogue: Catalogue, *, most: int = MOST_RUNS) -> None:
        self._catalogue = catalogue
        self._most = most
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory of all that is held, in bytes."""
        with self._lock:
            return sum(slot.held.nbytes for slot in self._slots.values() if slot.held is not None)

    def get(self, key: str) -> Held:
        """Return a run as the record has it now; one look at the record serves all who wait for it.

        Raises:
            NotFound: If there is no such run.
            RunError: If its record cannot be read.
        """
        came = time.monotonic()
        slot = self._slot(key)
        with slot.lock:
            # Who looked after this question came saw all that the question can ask for.
            if slot.held is not None and slot.looked >= came:
                return slot.held
            slot.looked = time.monotonic()
            try:
                reader, run_id = self._catalogue.open(key)
                slot.held = hold(reader, run_id, slot.held)
            except (LookupError, RunError):
                slot.held = None
                raise
            return slot.held

    def _slot(self, key: str) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._most:
                self._slots.popitem(last=False)
            return slot


def hold(reader: RunReader, run_id: int, before: Held | None = None) -> Held:
    """Return a run from its record; of ``before`` is kept what still holds.

    Raises:
        RunError: If the record cannot be read or has no such run.
    """
    with reader.connection() as connection:
        row = columns.head(connection, run_id)
        if row is None:
            raise RunError(f"record: holds no run {run_id}, which was there a moment ago. Check the run folder.")
        if before is not None and _same_run(before, row) and before.run.revision == row.revision:
            return replace(before, run=replace(before.run, heartbeat=row.heartbeat))
        marks = columns.marks(connection, run_id)
        done = max((mark.server_round for mark in marks if mark.finished is not None), default=0)
        since = _holds_before(before, row, marks)
        kept = before if since else None
        rounds = columns.round_rows(connection, run_id, since)
        ended = [item for item in rounds if item.finished is not None]
        return Held(
            epoch=kept.epoch if kept else secrets.token_hex(4),
            run=_summary(row, done),
            marks=marks,
            rounds=(*(item for item in (kept.rounds if kept else ()) if item.server_round < since), *rounds),
            figures=_figures(connection, run_id, kept, since, done),
            weights=(kept.weights if kept else Block()).grown(_weights(ended), since, done),
            seconds=(kept.seconds if kept else Block()).grown(_seconds(ended), since, done),
            sites=(kept.sites if kept else SiteTable()).grown(columns.site_rows(connection, run_id, since), since),
        )


def _same_run(before: Held, row: Row[Any]) -> bool:
    return (before.run.id, before.run.created) == (row.id, row.created)


def _holds_before(before: Held | None, row: Row[Any], marks: Sequence[columns.Mark]) -> int:
    """Return the round from which on all is read again; 0 is everything."""
    if before is None or not _same_run(before, row):
        return 0
    finished = tuple(mark for mark in before.marks if mark.server_round <= before.done)
    return before.done if tuple(marks[: len(finished)]) == finished else 0


def _summary(row: Row[Any], done: int) -> RunSummary:
    values = {item.name: getattr(row, item.name) for item in fields(RunSummary) if item.name != "rounds_done"}
    values |= {"classes": tuple(values["classes"]), "sites": tuple(values["sites"]), "rounds_done": done}
    return RunSummary(**values)


def _weights(rounds: Sequence[RoundRow]) -> Points:
    found: Points = defaultdict(list)
    for row in rounds:
        weights = row.notes.get("weights") or {}
        total = sum(weights.values())
        for site, weight in weights.items() if total else ():
            found[site].append((row.server_round, weight / total))
    return found


def _seconds(rounds: Sequence[RoundRow]) -> Points:
    return {
        phase: [(row.server_round, value) for row in rounds if (value := getattr(row, f"seconds_{phase}")) is not None]
        for phase in PHASES
    }


def _figures(
    connection: Connection, run_id: int, kept: Held | None, since: int, done: int
) -> dict[tuple[str, str], Block]:
    found: dict[tuple[str, str], Points] = defaultdict(lambda: defaultdict(list))
    for server_round, scope, split, name, value in columns.metric_rows(connection, run_id, FIGURES, since, done):
        found[split, name][scope].append((server_round, value))
    before = kept.figures if kept else {}
    return {key: before.get(key, Block()).grown(found.get(key, {}), since, done) for key in {**before, **found}}
