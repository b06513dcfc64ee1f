"""ECE over several sites from histograms of top-1 confidence, kept apart for hits and misses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from popmi_core.limits import MIN_CELL
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
    total = wrong.total + correct.total
    if not total:
        return UNKNOWN
    known = _bounds(wrong, correct, few_wrong=few_wrong, few_correct=few_correct, bins=ECE_BINS)
    over, under = np.diff(known.high) - known.hits_low, np.diff(known.low) - known.hits_high
    lower = np.maximum(0.0, np.maximum(-over, under)).sum()
    # The bins' gaps add up to no less than the gap of all patients together.
    overall = max(known.low[-1] - known.most[-1], known.least[-1] - known.high[-1])
    upper = np.maximum(np.abs(over), np.abs(under)).sum()
    centres, hit = _guess(known, few_wrong=few_wrong, few_correct=few_correct)
    value = gap_by_quantile(centres, hit, np.ones(len(hit)), bins=ECE_BINS)
    return bounded(value, max(float(lower), float(overall)) / total, float(upper) / total)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram, over the patients whose confidence is next to each other.

    Attributes:
        confidence: Mean top-1 confidence, a guess.
        accuracy: Share of hits, with bounds that hold; its value is a guess.
        count: Patients, rounded: bins hold exactly equal parts, and a patient on an edge is shared.
    """

    confidence: float
    accuracy: Bounded
    count: int


def reliability_bins(
    wrong: Runs, correct: Runs, *, few_wrong: int = 0, few_correct: int = 0, min_cell: int = MIN_CELL
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of ``ece_from_runs``, least confident first; fewer where a bin would hold under ``min_cell``.

    Args:
        wrong, correct, few_wrong, few_correct: As of ``ece_from_runs``.
        min_cell: Patients that a bin holds at least.
    """
    total = wrong.total + correct.total
    if total < min_cell:
        return ()
    number = min(ECE_BINS, total // min_cell)
    known = _bounds(wrong, correct, few_wrong=few_wrong, few_correct=few_correct, bins=number)
    centres, hit = _guess(known, few_wrong=few_wrong, few_correct=few_correct)
    order = np.argsort(centres, kind="stable")
    size = total / number
    confidences = np.diff(_cumulative(centres[order], known.knots)) / size
    hits = np.diff(_cumulative(hit[order], known.knots)) / size
    return tuple(
        ReliabilityBin(float(confidence), bounded(float(value), float(low), float(high)), round(size))
        for confidence, value, low, high in zip(
            confidences, hits, known.hits_low / size, known.hits_high / size, strict=True
        )
    )


@dataclass(frozen=True)
class _Known:
    """What runs say at the edges of the bins: sums of confidence below each (least, most), hits below, hits between."""

    knots: FloatArray
    low: FloatArray
    high: FloatArray
    least: FloatArray
    most: FloatArray
    hits_low: FloatArray
    hits_high: FloatArray
    misses: FloatArray
    hits: FloatArray


def _bounds(wrong: Runs, correct: Runs, *, few_wrong: int, few_correct: int, bins: int) -> _Known:
    misses, hits, edges = place(wrong), place(correct), grid_edges()
    knots = np.linspace(0.0, wrong.total + correct.total, bins + 1)
    low = _cumulative(np.sort(edges[np.append(misses.lowest, hits.lowest)]), knots)
    high = _cumulative(np.sort(edges[np.append(misses.highest, hits.highest) + 1]), knots)
    most = np.minimum(knots, _hits_below(hits.lowest, misses.highest, knots, hits_first=True) + few_correct)
    least = np.maximum(0.0, _hits_below(hits.highest, misses.lowest, knots, hits_first=False) - few_wrong)
    # Hits in a bin: the cumulative count can be low at its start and high at its end, or the reverse.
    hits_high = np.minimum(np.diff(knots), most[1:] - least[:-1])
    hits_low = np.maximum(0.0, least[1:] - most[:-1])
    return _Known(knots, low, high, least, most, hits_low, hits_high, misses.guess, hits.guess)


def _guess(known: _Known, *, few_wrong: int, few_correct: int) -> tuple[FloatArray, FloatArray]:
    """Return a likely confidence and share of a hit for every patient, misses first."""
    edges, misses, hits = grid_edges(), known.misses, known.hits
    centres = np.interp(np.append(misses, hits), np.arange(NUM_CELLS), (edges[1:] + edges[:-1]) / 2)
    hit = np.repeat(
        [few_correct / 2 / max(len(misses), 1), 1 - few_wrong / 2 / max(len(hits), 1)], [len(misses), len(hits)]
    )
    return centres, hit


def _cumulative(ordered: FloatArray, knots: FloatArray) -> FloatArray:
    return np.interp(knots, np.arange(len(ordered) + 1), np.append(0.0, np.cumsum(ordered)))


def _hits_below(hits: IntArray, misses: IntArray, knots: FloatArray, *, hits_first: bool) -> FloatArray:
    """Hits among the lowest patients, at each knot; equal cells with hits before misses or after."""
    cells = np.append(hits, misses)
    is_hit = np.arange(len(cells)) < len(hits)
    order = np.lexsort((is_hit != hits_first, cells))
    return _cumulative(is_hit[order].astype(np.float64), knots)
