"""What every metric asks of its input, said once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popmi_core.errors import UpdateError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Softmax in half precision leaves rows that miss one by about 2e-3; anything further off is not a probability.
ROW_SUM_TOLERANCE = 5e-3


def check_scores(scores: ArrayLike, target: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Return scores as float64 [n, C] and target as int64 [n].

    Raises:
        UpdateError: If a shape is wrong, n is 0, C < 2, a score is not finite, or a target is not an
            integer in 0..C-1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 2:
        raise UpdateError(
            f"scores have shape {values.shape}, expected (images, classes) with at least one image and two "
            "classes. Check that the split is not empty and that the model returns one score per class."
        )
    if not np.isfinite(values).all():
        raise UpdateError(
            f"{int((~np.isfinite(values)).any(axis=1).sum())} of {len(values)} images have scores that are NaN or "
            "infinite, expected finite numbers. The model has diverged; lower the learning rate."
        )
    return values, check_labels(target, num_images=values.shape[0], num_classes=values.shape[1], name="target")


def check_labels(labels: ArrayLike, *, num_images: int, num_classes: int, name: str) -> IntArray:
    """Return class numbers as int64 [n].

    Raises:
        UpdateError: If the shape is not (num_images,), or a label is not an integer in 0..num_classes-1.
    """
    values = np.asarray(labels)
    if values.shape != (num_images,):
        raise UpdateError(
            f"{name} has shape {values.shape}, expected ({num_images},): one class number per image. "
            "Check that scores and targets come from the same images."
        )
    if values.dtype.kind not in "iu":
        raise UpdateError(f"{name} has type {values.dtype}, expected integers. Convert names to class numbers first.")
    if values.size and (values.min() < 0 or values.max() >= num_classes):
        raise UpdateError(
            f"{name} has class numbers outside 0..{num_classes - 1}. "
            "Check that the site's label list is the federation's."
        )
    return values.astype(np.int64)


def check_probabilities(scores: FloatArray) -> None:
    """Refuse scores that are not probabilities.

    Raises:
        UpdateError: If a score lies outside 0..1 or a row does not sum to one.
    """
    sums = scores.sum(axis=1)
    if scores.min() < 0 or scores.max() > 1 or np.abs(sums - 1).max() > ROW_SUM_TOLERANCE:
        raise UpdateError(
            f"scores lie in {scores.min():.3g}..{scores.max():.3g} with row sums {sums.min():.4g}..{sums.max():.4g}, "
            "expected probabilities that sum to one. Apply softmax to the logits first."
        )
