"""Whether an answer survives turning the image by quarter turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray, check_probabilities


def rotation_consistency(scores_by_rotation: ArrayLike) -> float:
    """Share of images, 0..1, whose top-1 class is the same at 0, 90, 180 and 270 degrees.

    Args:
        scores_by_rotation: Probabilities, shape [rotations, n, C] with rotations >= 2; upright images first.

    Raises:
        UpdateError: If the shape is wrong or scores are not finite probabilities.
    """
    preds = _check_rotations(scores_by_rotation).argmax(axis=2)
    return float((preds == preds[0]).all(axis=0).mean())


def rotation_total_variation(scores_by_rotation: ArrayLike) -> float:
    """Mean over images and turns of half the L1 distance between turned and upright scores, 0..1.

    Args:
        scores_by_rotation: Probabilities, shape [rotations, n, C] with rotations >= 2; upright images first.

    Raises:
        UpdateError: If the shape is wrong or scores are not finite probabilities.
    """
    values = _check_rotations(scores_by_rotation)
    return float(np.abs(values[1:] - values[0]).sum(axis=2).mean() / 2)


def _check_rotations(scores_by_rotation: ArrayLike) -> FloatArray:
    values: FloatArray = np.asarray(scores_by_rotation, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] < 2 or values.shape[1] == 0 or values.shape[2] < 2:
        raise UpdateError(
            f"scores by rotation have shape {values.shape}, expected (rotations >= 2, images >= 1, classes >= 2). "
            "Stack one score table per rotation of the same images."
        )
    if not np.isfinite(values).all():
        raise UpdateError(
            "scores by rotation hold NaN or infinite numbers, expected finite ones. "
            "The model has diverged; lower the learning rate."
        )
    check_probabilities(values.reshape(-1, values.shape[2]))
    return values
