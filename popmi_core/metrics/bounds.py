"""What histograms with merged cells say about AUROC and AUPRC: a value, and bounds that cannot be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popmi_core.metrics.checks import FloatArray, IntArray
from popmi_core.metrics.discrimination import average_precision, binary_auroc
from popmi_core.metrics.histograms import NUM_CELLS, Runs
from popmi_core.metrics.placement import highest_mean, place

# Summing a thousand float64 terms errs by less; the bounds are widened by it so that they stay bounds.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Bounded:
    """A figure known within bounds: the exact value over the same patients lies in lower..upper."""

    value: float
    lower: float
    upper: float

    @property
    def resolution(self) -> float:
        """Half the width of the bounds."""
        return (self.upper - self.lower) / 2


UNKNOWN = Bounded(float("nan"), 0.0, 1.0)


def bounded(value: float, lower: float, upper: float) -> Bounded:
    """Widen the bounds by the rounding error and keep bounds and value inside 0..1."""
    low, high = max(0.0, lower - _ROUNDING), min(1.0, upper + _ROUNDING)
    return Bounded(min(max(value, low), high), low, high)


def mean_bounded(parts: list[Bounded]) -> Bounded:
    """Mean of values and of bounds; unknown if there is none."""
    if not parts:
        return UNKNOWN
    table = np.array([[part.value, part.lower, part.upper] for part in parts])
    return Bounded(*table.mean(axis=0).tolist())


def auroc_from_runs(positive: Runs, negative: Runs) -> Bounded:
    """One-vs-rest AUROC; within the bounds of one patient's cell a tie counts from 0 to 1."""
    if not positive.total or not negative.total:
        return UNKNOWN
    hits, misses = place(positive), place(negative)
    # A positive in cell x outscores at least surely_below[x] and at most maybe_below[x] negatives.
    surely_below = np.cumsum(_count(misses.highest)) - _count(misses.highest)
    maybe_below = np.cumsum(_count(misses.lowest))
    by_rank = maybe_below[hits.highest].sum(), surely_below[hits.lowest].sum()
    by_moment = (
        (positive.count * highest_mean(maybe_below.astype(np.float64), positive)).sum(),
        -(positive.count * highest_mean(-surely_below.astype(np.float64), positive)).sum(),
    )
    pairs = positive.total * negative.total
    return bounded(
        binary_auroc(*_stack(hits.guess, misses.guess)),
        lower=float(max(by_rank[1], by_moment[1])) / pairs,
        upper=float(min(by_rank[0], by_moment[0])) / pairs,
    )


def average_precision_from_runs(positive: Runs, negative: Runs) -> Bounded:
    """One-vs-rest average precision in scikit-learn's convention, whatever ties the sites' scores have.

    The k-th highest positive lies between the k-th highest of the lowest and of the highest places. Its precision
    is at least ``k / (k + most negatives above)``; at most, it is tied with later positives and gets theirs.
    """
    if not positive.total or not negative.total:
        return UNKNOWN
    hits, misses = place(positive), place(negative)
    rank = np.arange(1, positive.total + 1)
    lowest, highest = np.sort(hits.lowest)[::-1], np.sort(hits.highest)[::-1]
    maybe_above = _count(misses.highest)[::-1].cumsum()[::-1]
    surely_above = np.append(_count(misses.lowest)[::-1].cumsum()[::-1], 0)[1:]
    pessimistic = rank / (rank + maybe_above[lowest])
    optimistic = rank / (rank + surely_above[highest])
    tied_until = np.searchsorted(-highest, -lowest, side="right")
    best = [float(optimistic[k : max(end, k + 1)].max()) for k, end in enumerate(tied_until)]
    return bounded(
        average_precision(*_stack(hits.guess, misses.guess)),
        lower=float(pessimistic.mean()),
        upper=float(np.mean(best)),
    )


def _count(cells: IntArray) -> IntArray:
    return np.bincount(cells, minlength=NUM_CELLS).astype(np.int64)


def _stack(positive: FloatArray, negative: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    return np.concatenate([positive, negative]), np.arange(len(positive) + len(negative)) < len(positive)
