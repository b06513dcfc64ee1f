"""The floor of delta_rot: how much a rotation-invariant function of the same turned images still moves.

Turned images are interpolated, so even a function that is invariant on the plane changes a little. The twin is such a
function, made as like the model as it can be: the ridge regression of the model's upright logits on invariant
features, brought to the spread of the model's logits. Every figure of the twin is the floor of that figure.

It is one invariant function, not the least possible: a model that looks at nothing but the mean brightness moves less.
"""

from __future__ import annotations

import numpy as np

from popmi_core.metrics.checks import FloatArray

_PENALTIES = 10.0 ** np.arange(-6, 4)


def spread(logits: FloatArray) -> float:
    """Return the standard deviation of ``logits [n, C]`` between images (population), root mean square over classes."""
    return float(np.sqrt(logits.var(axis=0).mean()))


def invariant_twin(
    features: FloatArray,
    logits: FloatArray,
) -> FloatArray:
    """Return the logits of the invariant function of ``features`` that is most like a model's upright logits.

    Features are centred and scaled over the upright images; the penalty is the one of ten (1e-6 to 1e3 of the mean
    eigenvalue) with the least generalised cross-validation error (Golub, Heath and Wahba 1979).

    Args:
        features: Invariant features of the turned images, shape [angles, n, features]; the first angle is upright.
        logits: The model's upright logits, shape [n, C].

    Returns:
        Logits of the twin, shape [angles, n, C].
    """
    upright = features[0]
    scale = upright.std(axis=0)
    # A feature that is the same for all images says nothing; its rounding noise must not be blown up to scale 1.
    told = scale > 1e-9 * max(float(np.abs(upright).max()), 1.0)
    standard = (features[..., told] - upright[:, told].mean(axis=0)) / scale[told]
    centre = logits.mean(axis=0)
    moved: FloatArray = standard @ _ridge(standard[0], logits - centre)
    reached = spread(moved[0])
    return centre + moved * (spread(logits) / reached if reached else 0.0)


def _ridge(design: FloatArray, wanted: FloatArray) -> FloatArray:
    left, singular, right = np.linalg.svd(design, full_matrices=False)
    if not singular.size:
        return np.zeros((design.shape[1], wanted.shape[1]))
    size, projected = len(design), left.T @ wanted
    outside = float(np.square(wanted - left @ projected).sum())
    best, chosen = np.inf, np.ones_like(singular)
    for penalty in _PENALTIES * np.square(singular).mean():
        kept = np.square(singular) / (np.square(singular) + penalty)
        residual = outside + float(np.square((1 - kept)[:, None] * projected).sum())
        # The mean, fitted before, costs one more degree of freedom.
        error = residual / max(size - 1 - kept.sum(), 1e-9) ** 2
        if error < best:
            # As kept / singular, which is nothing over nothing where images are copies of each other.
            best, chosen = error, singular / (np.square(singular) + penalty)
    weights: FloatArray = right.T @ (chosen[:, None] * projected)
    return weights
