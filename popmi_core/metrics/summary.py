"""What a site tells of its scores so that the server can pool figures without any patient's score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popmi_core.errors import UpdateError
from popmi_core.limits import MIN_CELL as MIN_CELL
from popmi_core.metrics.arrival import check_arrays, check_summary
from popmi_core.metrics.checks import IntArray
from popmi_core.metrics.histograms import NUM_CELLS, Runs

_LAYOUT = 1
_COLUMNS = 7


def summary_bytes(num_classes: int) -> int:
    """Return the most bytes that the arrays of one summary can hold: every cell of every histogram a run of its own."""
    histograms = 2 * num_classes + 2
    return 8 * (_COLUMNS + 5 * num_classes + histograms * NUM_CELLS * _COLUMNS)


@dataclass(frozen=True)
class ScoreSummary:
    """A site's scores as histograms and counts in which small cells are suppressed.

    Attributes:
        min_cell: Nothing is told of fewer patients than this.
        num_examples: Images evaluated; 0 if the whole site is withheld.
        correct: Interval that holds the number of hits.
        told: Classes told of, bool [C]; of the others not even a count is told.
        hits: Interval that holds the true positives per class, int64 [C, 2].
        false_alarms: Interval that holds the false positives per class, int64 [C, 2].
        positive: Runs of the score of class c over images of class c, one per class.
        negative: Runs of the score of class c over all other images, one per class.
        wrong: Runs of top-1 confidence over misses (over all images where hits are too few to tell).
        right: Runs of top-1 confidence over hits (over all images where misses are too few to tell).
    """

    min_cell: int
    num_examples: int
    correct: tuple[int, int]
    told: NDArray[np.bool_]
    hits: IntArray
    false_alarms: IntArray
    positive: tuple[Runs, ...]
    negative: tuple[Runs, ...]
    wrong: Runs
    right: Runs

    @property
    def num_classes(self) -> int:
        """Classes, told of or not."""
        return len(self.told)

    @property
    def withheld(self) -> tuple[int, ...]:
        """Classes of which nothing is told."""
        return tuple(np.flatnonzero(~self.told).tolist())

    def to_arrays(self) -> dict[str, IntArray]:
        """The summary as three int64 arrays, ready to travel: header [7], classes [C, 5], runs [r, 7]."""
        header = [_LAYOUT, NUM_CELLS, self.num_classes, self.min_cell, self.num_examples, *self.correct]
        parts = [
            *((0, c, runs) for c, runs in enumerate(self.positive)),
            *((1, c, runs) for c, runs in enumerate(self.negative)),
            (2, 0, self.wrong),
            (3, 0, self.right),
        ]
        tables = [np.insert(runs.table(), 0, [[kind], [c]], axis=1) for kind, c, runs in parts]
        return {
            "header": np.array(header, dtype=np.int64),
            "classes": np.column_stack([self.told.astype(np.int64), self.hits, self.false_alarms]),
            "runs": np.concatenate(tables),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.generic]], *, site: str, num_classes: int, min_cell: int = MIN_CELL
    ) -> ScoreSummary:
        """Read and check what a site sent.

        Args:
            arrays: As from `to_arrays`.
            site: The sender, for the error.
            num_classes: Classes of the federation.
            min_cell: Smallest threshold that the federation accepts.

        Raises:
            UpdateError: If an array is missing, misshapen or not int64, the summary is of another layout or
                tells of fewer than ``min_cell`` patients, or its counts contradict each other.
        """
        header, classes, runs = check_arrays(arrays, site=site, num_classes=num_classes)
        expected = [_LAYOUT, NUM_CELLS, num_classes]
        if header[:3].tolist() != expected:
            raise UpdateError(
                f"site {site}: score summary has layout, cells, classes {header[:3].tolist()}, expected {expected}. "
                "Check that the site runs the same release and label list."
            )

        def part(kind: int, column: int) -> Runs:
            return Runs.from_table(runs[(runs[:, 0] == kind) & (runs[:, 1] == column), 2:])

        summary = cls(
            min_cell=int(header[3]),
            num_examples=int(header[4]),
            correct=(int(header[5]), int(header[6])),
            told=classes[:, 0] == 1,
            hits=classes[:, 1:3].copy(),
            false_alarms=classes[:, 3:5].copy(),
            positive=tuple(part(0, c) for c in range(num_classes)),
            negative=tuple(part(1, c) for c in range(num_classes)),
            wrong=part(2, 0),
            right=part(3, 0),
        )
        check_summary(summary, site=site, min_cell=min_cell)
        return summary
