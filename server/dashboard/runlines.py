"""The list of runs: each line as the record has it now, read again only when its run changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from popmi_core.errors import RunError
from server.dashboard.catalogue import Catalogue, NotFound
from server.dashboard.health import LAST_ROUNDS, State, judge, time_left
from server.dashboard.words import N_, said
from server.store import RoundRow, RunReader, RunSummary, SiteRow, columns
from server.store.looks import awaited_sites

LINES_SHOWN = 200
GROUPS = {
    "": N_("all"),
    "going": N_("going on"),
    "trouble": N_("in trouble"),
    "ended": N_("ended"),
}
"""Groups of states that one can choose."""
SORTS = ("begun", "name", "state", "progress", "left", "strategy", "sites", "best")
_TONES = {"bad": 0, "warn": 1, "good": 2, "idle": 3}


@dataclass(frozen=True)
class RunLine:
    """One line; ``run`` is None when its record cannot be read. ``left`` is in seconds, an estimate.

    ``best`` is the round with the best validation AUROC of all sites together, and that figure.
    """

    key: str
    run: RunSummary | None
    state: State
    left: float | None = None
    best: tuple[int, float] | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.key if self.run is None else self.run.name

    @property
    def going(self) -> bool:
        """Whether it goes on, or says so."""
        return self.run is not None and self.run.status in ("waiting", "running")


@dataclass(frozen=True)
class Choice:
    """Which runs to show, in which order; an unknown ``sort`` or ``group`` is the usual one."""

    query: str = ""
    group: str = ""
    strategy: str = ""
    sort: str = "begun"
    order: str = "down"

    def of(self, lines: Sequence[RunLine]) -> list[RunLine]:
        """Return the chosen lines in order; lines that lack what is sorted by come last."""
        chosen = [line for line in lines if self._fits(line)]
        sort = self.sort if self.sort in SORTS else "begun"
        known = [line for line in chosen if _sorted_by(line, sort) is not None]
        known.sort(key=lambda line: line.name)
        known.sort(key=lambda line: _sorted_by(line, sort) or 0, reverse=self.order != "up")  # type: ignore[arg-type,return-value]
        return known + [line for line in chosen if _sorted_by(line, sort) is None]

    def _fits(self, line: RunLine) -> bool:
        if self.query and self.query.casefold() not in f"{line.name} {line.key}".casefold():
            return False
        if self.strategy and (line.run is None or line.run.strategy != self.strategy):
            return False
        if self.group == "trouble":
            return line.state.tone in ("warn", "bad")
        if self.group in ("going", "ended"):
            return line.going == (self.group == "going")
        return True


@dataclass(frozen=True)
class _Read:
    """What a line is made of, as it was at ``fingerprint``."""

    fingerprint: str
    reader: RunReader
    run: RunSummary
    rounds: tuple[RoundRow, ...]
    sites: tuple[SiteRow, ...]
    joined: Collection[str] | None
    awaited: Sequence[str]
    best: tuple[int, float] | None


class RunLines:
    """Lines of a catalogue's runs.

    Args:
        catalogue: Where the runs are.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._read: dict[str, _Read] = {}
        self._lines: list[RunLine] = []
        self._looked = 0.0
        self._lock = threading.Lock()

    def all(self) -> list[RunLine]:
        """Return a line for every run, the newest first.

        Raises:
            RunError: If the database that holds all runs cannot be read.
        """
        came = time.monotonic()
        with self._lock:
            # Who looked after this question came saw all that the question can ask for.
            if self._looked >= came:
                return self._lines
            looked = time.monotonic()
            names, fingerprints = self._catalogue.names(), self._catalogue.fingerprints()
            self._read = {key: item for key, item in self._read.items() if key in names}
            lines = [self._line(key, fingerprints) for key in names]
            self._lines = sorted(lines, key=lambda line: -(line.run.created if line.run else 0.0))
            self._looked = looked
            return self._lines

    def one(self, key: str) -> RunLine:
        """Return one run's line.

        Raises:
            NotFound: If there is no such run.
            RunError: If the database that holds all runs cannot be read.
        """
        if key not in self._catalogue.names():
            raise NotFound(key)
        with self._lock:
            return self._line(key, self._catalogue.fingerprints())

    def _line(self, key: str, fingerprints: Mapping[str, str]) -> RunLine:
        fingerprint = fingerprints.get(key, "")
        try:
            found = self._read.get(key)
            if found is None or found.fingerprint != fingerprint or not fingerprint:
                reader, run_id = self._catalogue.open(key)
                found = self._read[key] = _read(reader, run_id, fingerprint)
            elif found.run.status in ("waiting", "running"):
                # A sign of life alone is no news, but tells that the run is not lost.
                pulse = found.reader.pulses().get(found.run.id)
                found = replace(found, run=replace(found.run, heartbeat=pulse.heartbeat)) if pulse else found
        except RunError as error:
            return RunLine(key, None, State("unreadable", "bad", str(error)))
        except NotFound:
            gone = said(N_("its folder was removed just now"))
            return RunLine(key, None, State("gone", "bad", str(gone), (gone,)))
        run = found.run
        state = judge(run, found.rounds, found.sites, time.time(), joined=found.joined, awaited=found.awaited)
        return RunLine(key, run, state, time_left(run, found.rounds, state), found.best)


def _read(reader: RunReader, run_id: int, fingerprint: str) -> _Read:
    run = reader.run(run_id)
    waiting = run.status == "waiting"
    # The best round is chosen by validation images, never by test images.
    with reader.connection() as connection:
        best = columns.best_figure(connection, run_id, "auroc", "val", "global")
    joined = {row.scope for row in reader.details(run_id, kind="joined", server_round=0)} if waiting else None
    return _Read(
        fingerprint,
        reader,
        run,
        reader.rounds(run_id, since=max(0, run.rounds_done - LAST_ROUNDS + 1)),
        tuple(reader.sites(run_id, since=run.rounds_done)),
        joined,
        awaited_sites(reader, run),
        best,
    )


def _sorted_by(line: RunLine, sort: str) -> object:
    run = line.run
    if sort == "name":
        return line.name.casefold()
    if sort == "state":
        return _TONES[line.state.tone]
    if run is None:
        return None
    return {
        "begun": run.created,
        "progress": run.rounds_done / max(1, run.rounds_planned),
        "left": line.left,
        "strategy": run.strategy,
        "sites": len(run.sites),
        "best": line.best[1] if line.best else None,
    }[sort]
