"""Figures of a run as number tables that grow with it: a row a scope, a column a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.store import SiteRow
from server.store.schema import SITE_OUTCOMES, SITE_PHASES

NOTHING = -1
"""In a table of outcomes: nothing is recorded."""
SUMMED = ("seconds", "bytes_up", "bytes_down", "num_examples")
TRAINED = ("epsilon", "train_loss")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """One figure: ``values[scope, round]``, NaN where undefined or absent; ``present`` where a round has any row."""

    scopes: tuple[str, ...] = ()
    values: Floats = field(default_factory=lambda: np.empty((0, 0)))
    present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.values.nbytes + self.present.nbytes

    def grown(self, found: Mapping[str, Iterable[tuple[int, float | None]]], since: int, last: int) -> Block:
        """Return a block up to round ``last``: rounds before ``since`` as they are, the others from ``found``."""
        scopes = (*self.scopes, *(scope for scope in sorted(found) if scope not in self.scopes))
        values = np.full((len(scopes), last + 1), np.nan)
        present = np.zeros(last + 1, dtype=bool)
        kept = min(since, self.present.size)
        values[: len(self.scopes), :kept] = self.values[:, :kept]
        present[:kept] = self.present[:kept]
        for scope, points in found.items():
            row = values[scopes.index(scope)]
            for server_round, value in points:
                present[server_round] = True
                if value is not None:
                    row[server_round] = value
        return Block(scopes, values, present)


@dataclass(frozen=True)
class SiteTable:
    """What sites did: tables by phase (train, evaluate), site and round; ``faults`` are the rows that are not *ok*.

    ``sums`` holds ``SUMMED`` and ``trained`` holds ``TRAINED`` by name, NaN where nothing is recorded.
    """

    names: tuple[str, ...] = ()
    outcomes: NDArray[np.int8] = field(default_factory=lambda: np.full((2, 0, 0), NOTHING, dtype=np.int8))
    sums: Mapping[str, Floats] = field(default_factory=dict)
    trained: Mapping[str, Floats] = field(default_factory=dict)
    faults: tuple[SiteRow, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory in bytes, a fault counted as 400."""
        tables = sum(table.nbytes for table in (*self.sums.values(), *self.trained.values()))
        return self.outcomes.nbytes + tables + 400 * len(self.faults)

    @property
    def last(self) -> int:
        """The newest round with a row; -1 without any."""
        seen = np.flatnonzero((self.outcomes != NOTHING).any(axis=(0, 1)))
        return int(seen[-1]) if seen.size else -1

    def grown(self, rows: Iterable[tuple[Any, ...]], since: int) -> SiteTable:
        """Return a table that keeps rounds before ``since`` and takes the others from ``SITE_COLUMNS`` rows."""
        fresh = [SiteRow(*row) for row in rows]
        names = (*self.names, *sorted({row.site for row in fresh} - set(self.names)))
        kept = min(since, self.outcomes.shape[2])
        width = max((row.server_round + 1 for row in fresh), default=kept)
        width = max(width, kept)
        outcomes = np.full((len(SITE_PHASES), len(names), width), NOTHING, dtype=np.int8)
        outcomes[:, : len(self.names), :kept] = self.outcomes[:, :, :kept]
        shape = outcomes.shape
        sums = {name: _widened(self.sums.get(name), shape, kept) for name in SUMMED}
        trained = {name: _widened(self.trained.get(name), shape[1:], kept) for name in TRAINED}
        places = {name: place for place, name in enumerate(names)}
        for row in fresh:
            where = SITE_PHASES.index(row.phase), places[row.site], row.server_round
            outcomes[where] = SITE_OUTCOMES.index(row.outcome)
            for name in SUMMED:
                if (value := getattr(row, name)) is not None:
                    sums[name][where] = value
            for name in TRAINED if row.phase == "train" else ():
                if (value := getattr(row, name)) is not None:
                    trained[name][where[1:]] = value
        faults = (
            *(row for row in self.faults if row.server_round < kept),
            *(row for row in fresh if row.outcome != "ok"),
        )
        return SiteTable(names, outcomes, sums, trained, faults)

    def recent(self, since: int) -> tuple[SiteRow, ...]:
        """Return the rows from round ``since`` on with what a run's state is judged by: outcome and reason."""
        told = {(row.server_round, row.site, row.phase): row for row in self.faults if row.server_round >= since}
        rows = []
        for server_round in range(max(since, 0), self.outcomes.shape[2]):
            for place, site in enumerate(self.names):
                for number, phase in enumerate(SITE_PHASES):
                    code = self.outcomes[number, place, server_round]
                    if code != NOTHING:
                        plain = SiteRow(server_round, site, phase, SITE_OUTCOMES[code], *[None] * 7)
                        rows.append(told.get((server_round, site, phase), plain))
        return tuple(rows)


def _widened(held: Floats | None, shape: tuple[int, ...], kept: int) -> Floats:
    wide = np.full(shape, np.nan)
    if held is not None:
        # Sites stand one before last, rounds last; sites only ever join at the end.
        wide[..., : held.shape[-2], :kept] = held[..., :kept]
    return wide
