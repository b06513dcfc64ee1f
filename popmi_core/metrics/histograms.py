"""Score histograms in which everything told is about at least ``min_cell`` patients.

Scores lie on one fixed grid, the same at every site. A site merges neighbouring cells into *runs* and tells of each
run its extent, its count, and the mean and spread of its patients in whole cells; nothing about one patient.

Merging until a run is full, left to right, would give single patients away: whoever knows the rule knows that the
last cell of each run holds the patient who filled it. Runs are therefore cut only at the middle of a dyadic block
of cells (halves, quarters, eighths, ... of the grid) whose two halves each hold ``min_cell`` patients. Even knowing
the rule, no reader of extents and counts can then conclude that a stretch of scores holds one to ``min_cell - 1``
patients (tests/properties/test_metric_laws.py proves it by enumeration on a small grid).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from popmi_core.metrics.checks import FloatArray, IntArray

NUM_CELLS = 512
# Softmax outputs crowd at 0 and 1: equal steps in log-odds resolve both ends down to 6e-6 (log-odds 12).
_GRID_END = 12.0


def grid_edges() -> FloatArray:
    """The ``NUM_CELLS + 1`` edges in 0..1; cell k holds scores in [edges[k], edges[k + 1]), the last one also 1."""
    log_odds = np.linspace(-_GRID_END, _GRID_END, NUM_CELLS - 1)
    return np.concatenate(([0.0], 1.0 / (1.0 + np.exp(-log_odds)), [1.0]))


def count_cells(scores: FloatArray) -> IntArray:
    """Count scores in 0..1 per grid cell, shape [NUM_CELLS]."""
    cells = np.searchsorted(grid_edges()[1:-1], scores, side="right")
    return np.bincount(cells, minlength=NUM_CELLS).astype(np.int64)


@dataclass(frozen=True)
class Runs:
    """Patients over runs of neighbouring cells, all int64 [runs].

    Attributes:
        first: First cell of each run.
        last: Last cell of each run, inclusive.
        count: Patients in each run.
        mean: Their mean cell, rounded down.
        spread: Standard deviation of their cells, rounded up.
    """

    first: IntArray
    last: IntArray
    count: IntArray
    mean: IntArray
    spread: IntArray

    @property
    def total(self) -> int:
        """Patients in all runs."""
        return int(self.count.sum())

    def table(self) -> IntArray:
        """The five columns side by side, shape [runs, 5]."""
        return np.stack([self.first, self.last, self.count, self.mean, self.spread], axis=1)

    @classmethod
    def from_table(cls, table: IntArray) -> Runs:
        """The inverse of `table`."""
        return cls(*(table[:, column].copy() for column in range(5)))


EMPTY_RUNS = Runs.from_table(np.zeros((0, 5), dtype=np.int64))


def merge_small_cells(counts: IntArray, *, min_cell: int) -> Runs:
    """Merge neighbouring cells into runs of at least ``min_cell`` patients that tile the grid.

    Args:
        counts: Patients per cell, shape [cells], cells a power of two.
        min_cell: Smallest number of patients that may be told of.

    Returns:
        The runs from low to high scores; none at all if there are fewer than ``min_cell`` patients.
    """
    cells = np.arange(len(counts), dtype=np.int64)
    running = np.append(0, np.cumsum(counts))
    if running[-1] < min_cell:
        return EMPTY_RUNS
    bounds = np.array([0, *_cuts(running, 0, len(counts), min_cell), len(counts)], dtype=np.int64)
    count = np.diff(running[bounds])
    total = np.diff(np.append(0, np.cumsum(counts * cells))[bounds])
    squares = np.diff(np.append(0, np.cumsum(counts * cells**2))[bounds])
    # Integers under the root: sites with equal counts tell equal numbers on any machine.
    spread = np.ceil(np.sqrt(count * squares - total**2) / count).astype(np.int64)
    return Runs(first=bounds[:-1], last=bounds[1:] - 1, count=count, mean=total // count, spread=spread)


def _cuts(running: IntArray, start: int, stop: int, min_cell: int) -> list[int]:
    """Where to cut the dyadic block [start, stop), in increasing order."""
    if stop - start == 1:
        return []
    middle = (start + stop) // 2
    low_full = running[middle] - running[start] >= min_cell
    high_full = running[stop] - running[middle] >= min_cell
    # A half that is too small is never told apart: its patients stay with the run next to it.
    low = _cuts(running, start, middle, min_cell) if low_full else []
    high = _cuts(running, middle, stop, min_cell) if high_full else []
    return [*low, middle, *high] if low_full and high_full else [*low, *high]


def join_runs(parts: list[Runs]) -> Runs:
    """Put the runs of several sites into one list."""
    return Runs.from_table(np.concatenate([EMPTY_RUNS.table(), *(part.table() for part in parts)]))
