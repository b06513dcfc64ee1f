"""ECE over several sites from histograms of top-1 confidence, kept apart for hits and misses."""

from __future__ import annotations

import numpy as np

from popmi_core.metrics.bounds import UNKNOWN, Bounded, bounded
from popmi_core.metrics.calibration import ECE_BINS, gap_by_quantile
from popmi_core.metrics.checks import FloatArray, IntArray
from popmi_core.metrics.histograms import NUM_CELLS, Runs, grid_edges
from popmi_core.metrics.placement import place


def ece_from_runs(wrong: Runs, correct: Runs, *, few_wrong: int = 0, few_correct: int = 0) -> Bounded:
    """Expected calibration error, top-1, 15 equal-mass bins, from runs of confidence.

    Args:
        wrong: Confidence of misses.
        correct: Confidence of hits.
        few_wrong: Up to so many patients in ``correct`` are misses (sites with too few misses to tell).
        few_correct: Up to so many patients in ``wrong`` are hits.
    """
    misses, hits = place(wrong), place(correct)
    total = wrong.total + correct.total
    if not total:
        return UNKNOWN
    knots = np.linspace(0.0, total, ECE_BINS + 1)
    edges = grid_edges()
    low = _cumulative(np.sort(edges[np.append(misses.lowest, hits.lowest)]), knots)
    high = _cumulative(np.sort(edges[np.append(misses.highest, hits.highest) + 1]), knots)
    most = np.minimum(knots, _hits_below(hits.lowest, misses.highest, knots, hits_first=True) + few_correct)
    least = np.maximum(0.0, _hits_below(hits.highest, misses.lowest, knots, hits_first=False) - few_wrong)
    # Hits in a bin: the cumulative count can be low at its start and high at its end, or the reverse.
    hits_high = np.minimum(np.diff(knots), most[1:] - least[:-1])
    hits_low = np.maximum(0.0, least[1:] - most[:-1])
    over, under = np.diff(high) - hits_low, np.diff(low) - hits_high
    lower = np.maximum(0.0, np.maximum(-over, under)).sum()
    # The bins' gaps add up to no less than the gap of all patients together.
    overall = max(low[-1] - most[-1], least[-1] - high[-1])
    upper = np.maximum(np.abs(over), np.abs(under)).sum()
    value = _guess(misses.guess, hits.guess, few_wrong=few_wrong, few_correct=few_correct)
    return bounded(value, max(float(lower), float(overall)) / total, float(upper) / total)


def _guess(misses: FloatArray, hits: FloatArray, *, few_wrong: int, few_correct: int) -> float:
    edges = grid_edges()
    centres = np.interp(np.append(misses, hits), np.arange(NUM_CELLS), (edges[1:] + edges[:-1]) / 2)
    hit = np.repeat(
        [few_correct / 2 / max(len(misses), 1), 1 - few_wrong / 2 / max(len(hits), 1)], [len(misses), len(hits)]
    )
    return gap_by_quantile(centres, hit, np.ones(len(hit)), bins=ECE_BINS)


def _cumulative(ordered: FloatArray, knots: FloatArray) -> FloatArray:
    return np.interp(knots, np.arange(len(ordered) + 1), np.append(0.0, np.cumsum(ordered)))


def _hits_below(hits: IntArray, misses: IntArray, knots: FloatArray, *, hits_first: bool) -> FloatArray:
    """Hits among the lowest patients, at each knot; equal cells with hits before misses or after."""
    cells = np.append(hits, misses)
    is_hit = np.arange(len(cells)) < len(hits)
    order = np.lexsort((is_hit != hits_first, cells))
    return _cumulative(is_hit[order].astype(np.float64), knots)
