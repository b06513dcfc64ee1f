"""Whether scores mean what they say: ECE, Brier score, negative log-likelihood."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import ConfigError
from popmi_core.metrics.checks import FloatArray, check_probabilities, check_scores

ECE_BINS = 15


def gap_by_quantile(confidence: FloatArray, correct: FloatArray, weight: FloatArray, *, bins: int) -> float:
    """Sum over equal-mass bins of ``|sum weight (confidence - correct)|``, over the total weight.

    Bins hold exactly ``1 / bins`` of the weight: an entry that straddles an edge is shared between its bins, and
    equal confidences are averaged first, so the result does not depend on the order of the images.

    Raises:
        ConfigError: If there is no bin.
    """
    if bins < 1:
        raise ConfigError(
            f"bins is {bins}, expected at least 1: without one there is no gap to measure. Take {ECE_BINS}."
        )
    _, level = np.unique(confidence, return_inverse=True)
    mass = np.bincount(level, weights=weight)
    excess = np.bincount(level, weights=weight * (confidence - correct))
    edges = np.linspace(0.0, mass.sum(), bins + 1)
    running = np.interp(edges, np.append(0.0, np.cumsum(mass)), np.append(0.0, np.cumsum(excess)))
    return float(np.abs(np.diff(running)).sum() / mass.sum())


def expected_calibration_error(scores: ArrayLike, target: ArrayLike, *, bins: int = ECE_BINS) -> float:
    """Mean gap between top-1 confidence and accuracy over equal-mass bins (Nguyen and O'Connor 2015).

    Args:
        scores: Probabilities, shape [n, C]; the first of tied classes is the prediction.
        target: Shape [n], class numbers.
        bins: Number of bins with the same number of images in each (shared at the edges).

    Raises:
        ConfigError: If there is no bin.
        UpdateError: As `check_scores`, or if scores are not probabilities.
    """
    values, labels = check_scores(scores, target)
    check_probabilities(values)
    correct = (values.argmax(axis=1) == labels).astype(np.float64)
    return gap_by_quantile(values.max(axis=1), correct, np.ones(len(values)), bins=bins)


def brier(scores: ArrayLike, target: ArrayLike) -> float:
    """Mean over images of the squared distance to the one-hot target, summed over classes: 0 best, 2 worst.

    Raises:
        UpdateError: As `check_scores`, or if scores are not probabilities.
    """
    values, labels = check_scores(scores, target)
    check_probabilities(values)
    return float(np.square(values - np.eye(values.shape[1])[labels]).sum(axis=1).mean())


def negative_log_likelihood(scores: ArrayLike, target: ArrayLike) -> float:
    """Mean of ``-ln`` score of the target, in nats; scores are clipped at 2.2e-16 as in scikit-learn.

    Raises:
        UpdateError: As `check_scores`, or if scores are not probabilities.
    """
    values, labels = check_scores(scores, target)
    check_probabilities(values)
    eps = np.finfo(np.float64).eps
    hit = values[np.arange(len(values)), labels]
    return float(-np.log(np.clip(hit, eps, 1 - eps)).mean())
