"""How well scores rank and classes are hit: AUROC, AUPRC, F1, recall, accuracy.

Conventions: multi-class metrics are unweighted means over classes, one-vs-rest. A class without a positive or
without a negative has no AUROC and no AUPRC and is left out of the mean; if none is left the result is NaN,
never 0.5. All agree with scikit-learn wherever scikit-learn defines a value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray, IntArray, check_labels, check_scores


def binary_auroc(scores: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive outscores a negative, ties counting one half (Mann-Whitney); NaN if undefined.

    Args:
        scores: Shape [n], any finite numbers; only their order matters.
        positive: Shape [n].
    """
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, level = np.unique(scores, return_inverse=True)
    positives = np.bincount(level[positive], minlength=level.max() + 1)
    negatives = np.bincount(level[~positive], minlength=level.max() + 1)
    below = np.cumsum(negatives) - negatives
    # Twice the count, so that half ties stay integers: exact, whatever the order of the images.
    twice_won = int((positives * (2 * below + negatives)).sum())
    return twice_won / (2 * num_positive * num_negative)


def average_precision(scores: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Area under the precision-recall steps, ``sum_k (R_k - R_{k-1}) P_k`` over distinct scores; NaN if undefined.

    No interpolation between steps (scikit-learn's ``average_precision_score``); tied images enter together.
    """
    num_positive = int(positive.sum())
    if num_positive == 0 or num_positive == positive.size:
        return float("nan")
    _, level = np.unique(-scores, return_inverse=True)
    gained = np.bincount(level[positive], minlength=level.max() + 1)
    seen = np.cumsum(np.bincount(level))
    return float((gained * np.cumsum(gained) / seen).sum() / num_positive)


def _macro(
    metric: Callable[[FloatArray, NDArray[np.bool_]], float], scores: ArrayLike, target: ArrayLike
) -> tuple[float, FloatArray]:
    values, labels = check_scores(scores, target)
    per_class = np.array([metric(values[:, c], labels == c) for c in range(values.shape[1])])
    return mean_of_defined(per_class), per_class


def mean_of_defined(values: FloatArray) -> float:
    """Mean of the entries that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def auroc_macro_ovr(scores: ArrayLike, target: ArrayLike) -> float:
    """Mean one-vs-rest AUROC over classes with both positives and negatives; NaN if there is none.

    Args:
        scores: Shape [n, C], finite; any monotone map of a column leaves the result unchanged.
        target: Shape [n], class numbers.

    Raises:
        UpdateError: As `check_scores`.
    """
    return _macro(binary_auroc, scores, target)[0]


def auprc_macro(scores: ArrayLike, target: ArrayLike) -> float:
    """Mean one-vs-rest average precision over classes with both positives and negatives; NaN if there is none.

    Raises:
        UpdateError: As `check_scores`.
    """
    return _macro(average_precision, scores, target)[0]


def confusion(preds: ArrayLike, target: ArrayLike, num_classes: int) -> IntArray:
    """Count images by (target, preds), shape [C, C].

    Raises:
        UpdateError: If there is no image, shapes differ, or a class number is outside 0..C-1.
    """
    num_images = np.asarray(target).size
    if num_images == 0:
        raise UpdateError("no images to evaluate, expected at least one. Check that the split is not empty.")
    rows = check_labels(target, num_images=num_images, num_classes=num_classes, name="target")
    columns = check_labels(preds, num_images=num_images, num_classes=num_classes, name="preds")
    cells = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def macro_f1(preds: ArrayLike, target: ArrayLike, num_classes: int) -> float:
    """Mean over classes that occur in target or preds of ``2 TP / (2 TP + FP + FN)`` (scikit-learn's default)."""
    table = confusion(preds, target, num_classes)
    hits, mass = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return float((2 * hits[mass > 0] / mass[mass > 0]).mean())


def balanced_accuracy(preds: ArrayLike, target: ArrayLike, num_classes: int) -> float:
    """Mean recall over classes that occur in target."""
    table = confusion(preds, target, num_classes)
    support = table.sum(axis=1)
    return float((np.diag(table)[support > 0] / support[support > 0]).mean())


def accuracy(preds: ArrayLike, target: ArrayLike, num_classes: int) -> float:
    """Share of images whose class is hit."""
    table = confusion(preds, target, num_classes)
    return int(np.trace(table)) / int(table.sum())
