"""Where the patients of a run can lie: a rigorous interval and a best guess for each of them.

The j-th highest of k numbers with mean m and standard deviation s lies in
``[m - s sqrt((j - 1) / (k - j + 1)), m + s sqrt((k - j) / j)]`` (Wolkowicz and Styan 1980,
doi:10.1016/0024-3795(80)90258-X); with the run's extent this places every rank, and no patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from popmi_core.metrics.checks import FloatArray, IntArray
from popmi_core.metrics.histograms import Runs

# Rounding of the square roots must not push a bound across a whole cell.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Placement:
    """One entry per patient of the runs, each [patients]: cells lowest <= true cell <= highest, and a guess."""

    lowest: IntArray
    highest: IntArray
    guess: FloatArray


def place(runs: Runs) -> Placement:
    """Return what extent, mean and spread of each run leave open about its patients, rank by rank."""
    size = np.repeat(runs.count, runs.count)
    first, last = np.repeat(runs.first, runs.count), np.repeat(runs.last, runs.count)
    mean, spread = np.repeat(runs.mean, runs.count), np.repeat(runs.spread, runs.count)
    starts = np.repeat(np.cumsum(runs.count) - runs.count, runs.count)
    rank = np.arange(len(size)) - starts + 1
    above = np.minimum(spread * np.sqrt((size - rank) / rank), (size - rank) * (mean + 1 - first) / rank)
    rest = size - rank + 1
    below = np.minimum(spread * np.sqrt((rank - 1) / rest), (rank - 1) * (last - mean) / rest)
    highest = np.minimum(last, np.floor(mean + 1 + above + _ROUNDING).astype(np.int64))
    lowest = np.maximum(first, np.ceil(mean - below - _ROUNDING).astype(np.int64))
    return Placement(lowest=lowest, highest=highest, guess=_guess(runs))


def _guess(runs: Runs) -> FloatArray:
    """Normal scores with the run's mean and spread, kept inside the run; in cells, not whole."""
    guesses = [np.zeros(0)]
    for first, last, count, mean, spread in runs.table().tolist():
        scores = _normal_scores(count) * max(spread - 0.5, 0.0) + mean + 0.5 - 0.5 * (last == first)
        guesses.append(np.clip(scores, first, last))
    return np.concatenate(guesses)


def _normal_scores(count: int) -> FloatArray:
    """Quantiles of the standard normal at the middles of ``count`` equal slices, highest first, unit variance."""
    quantile = NormalDist().inv_cdf
    scores = np.array([quantile((count - rank - 0.5) / count) for rank in range(count)])
    deviation = float(scores.std())
    return scores / deviation if deviation else scores


def highest_mean(curve: FloatArray, runs: Runs) -> FloatArray:
    """Upper bound, per run, on the mean of ``curve`` at the cells of its patients, shape [runs].

    Any parabola above the curve bounds it: ``mean f(x) <= max_x (f(x) - b (x - c) - g (x - c)^2) + |b| / 2 +
    g (s^2 + 1/4)`` for g >= 0, because the mean lies within half a cell of c and the spread is at most s. The least
    value over a fixed set of slopes b and curvatures g is taken (Lagrange duality).
    """
    bounds = np.empty(len(runs.count))
    steps = np.append(0.0, np.geomspace(1 / 16, 16, 17))
    slopes = np.concatenate([-steps[:0:-1], steps])[:, None, None]
    curvatures = np.append(0.0, np.geomspace(1 / 64, 16, 13))[None, :, None]
    for row, (first, last, _, mean, spread) in enumerate(runs.table().tolist()):
        values = curve[first : last + 1]
        scale = max(float(spread), 1.0)
        height = max(float(np.ptp(values)), 1e-300)
        x = (np.arange(first, last + 1) - mean - 0.5) / scale
        peaks = (values / height - slopes * x - curvatures * x**2).max(axis=2)
        costs = np.abs(slopes[..., 0]) / (2 * scale) + curvatures[..., 0] * (spread**2 + 0.25) / scale**2
        bounds[row] = (peaks + costs).min() * height
    return bounds
