"""Hits and false alarms of a class over several sites, from told intervals and from what the runs imply.

A score above one half is the top-1 class; a score below 1/C is not. Where a count is hidden, its runs therefore
still bound it, and scores in between guess it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popmi_core.metrics.bounds import Bounded, bounded
from popmi_core.metrics.checks import ROW_SUM_TOLERANCE, FloatArray, IntArray
from popmi_core.metrics.histograms import NUM_CELLS, Runs, grid_edges
from popmi_core.metrics.placement import place
from popmi_core.metrics.summary import ScoreSummary


def recall_and_f1(summaries: Sequence[ScoreSummary], column: int) -> tuple[Bounded, Bounded]:
    """Recall and F1 of class ``column`` over the patients of the sites that tell of it."""
    telling = [summary for summary in summaries if summary.told[column]]
    support = sum(summary.positive[column].total for summary in telling)
    hits = sum((_top_one(s.positive[column], s.hits[column], s.num_classes) for s in telling), np.zeros(3))
    false = sum((_top_one(s.negative[column], s.false_alarms[column], s.num_classes) for s in telling), np.zeros(3))
    low, middle, high = (hits / support).tolist()
    f1 = 2 * hits / (support + hits + false[::-1])
    guess = 2 * hits[1] / (support + hits[1] + false[1])
    return bounded(middle, low, high), bounded(float(guess), float(f1[0]), float(f1[2]))


def top_one_range(runs: Runs, interval: IntArray, num_classes: int) -> tuple[int, int]:
    """Least and most patients of the runs whose top-1 class this is, by the told interval and by the runs."""
    least, most = interval.tolist()
    if least == most:
        return least, most
    placed, edges = place(runs), grid_edges()
    least = max(least, int((edges[placed.lowest] > 0.5 + ROW_SUM_TOLERANCE / 2).sum()))
    most = min(most, int((edges[placed.highest + 1] > _floor(num_classes)).sum()))
    return least, most


def _floor(num_classes: int) -> float:
    """A score below this is not the largest of so many."""
    return (1 - ROW_SUM_TOLERANCE) / num_classes


def _top_one(runs: Runs, interval: IntArray, num_classes: int) -> FloatArray:
    """Least, likely and most patients of the runs whose top-1 class this is."""
    least, most = top_one_range(runs, interval, num_classes)
    if interval[0] == interval[1]:
        return np.array([least, least, least], dtype=np.float64)
    placed, edges, floor = place(runs), grid_edges(), _floor(num_classes)
    scores = np.interp(placed.guess, np.arange(NUM_CELLS), (edges[1:] + edges[:-1]) / 2)
    # How often a score between 1/C and 1/2 wins; the square is close for softmax scores of good and poor models.
    likely = np.square(np.clip((scores - floor) / (0.5 - floor), 0, 1)).sum()
    return np.array([least, min(max(likely, least), most), most])
