"""Intervals by the bootstrap over images: whole images are drawn again, with all their angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popmi_core.metrics.checks import FloatArray

RESAMPLES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and where it would lie, with 95 % confidence, for other images of the same kind (percentiles)."""

    value: float
    lower: float
    upper: float

    def to_json(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"value": self.value, "lower": self.lower, "upper": self.upper}


def resample(num_images: int, *, resamples: int, seed: int) -> FloatArray:
    """Return how often every image counts, [resamples + 1, n]: once each in row 0, then in draws with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    return np.concatenate([np.ones((1, num_images)), drawn])


def interval(values: FloatArray) -> Interval:
    """Return the first of ``values [resamples + 1]`` with percentiles of the others; draws without one are left out."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return Interval(float(values[0]), float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(values[0]), float(lower), float(upper))


def ratio_interval(over: FloatArray, under: FloatArray) -> Interval:
    """Return ``over / under`` of figures of 0 or more, ``[resamples + 1]`` each, with percentiles of the draws.

    A draw with something over a floor of 0 is infinite, and larger than all others, as in the figure itself; one of
    nothing over nothing says nothing and is left out. Where a draw is infinite, each end is the nearest draw outwards,
    as no number lies halfway to infinity. An infinite figure has an infinite upper end, if any draw says something; a
    figure that is undefined has no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = over / under
    value, drawn = float(ratios[0]), ratios[1:][~np.isnan(ratios[1:])]
    if np.isnan(value) or not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    if np.isfinite(value) and np.isfinite(drawn).all():
        return interval(ratios)
    tail = (1 - CONFIDENCE) / 2
    lower = float(np.quantile(drawn, tail, method="lower"))
    upper = float(np.quantile(drawn, 1 - tail, method="higher"))
    return Interval(value, lower, value if np.isinf(value) else upper)


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the mean over images of ``values [..., n]`` in every draw of ``weights [draws, n]``: ``[..., draws]``."""
    mean: FloatArray = values @ weights.T / weights.sum(axis=1)
    return mean


def weighted_auroc(
    scores: FloatArray,
    positive: NDArray[np.bool_],
    weights: FloatArray,
) -> FloatArray:
    """Return the AUROC in every draw of ``weights [draws, n]``; NaN where a draw has only one kind of image.

    As ``binary_auroc`` of the images, each counted as often as drawn. One sort serves all draws:
    O(n log n + n draws).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    ranked = weights[:, order]
    positives = np.add.reduceat(ranked * positive[order], starts, axis=1)
    negatives = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    twice_won = (positives * (2 * below + negatives)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        area: FloatArray = twice_won / (2 * pairs)
    return area
