"""Upper bounds on the loss between two models from how fast the loss may change along the line.

With ``f(alpha) = L((1 - alpha) W1 + alpha W2)``, ``D = |W1 - W2|_F`` and a Lipschitz constant K of the loss on the
segment (``|f(a) - f(b)| <= K D |a - b|``), walking in from both ends gives

    f(alpha) <= min(f(0) + K D alpha, f(1) + K D (1 - alpha))                                  (tight)
             <= (1 - alpha) f(0) + alpha f(1) + 2 K D alpha (1 - alpha)
             <= max(f(0), f(1)) + 2 K D alpha (1 - alpha)                                      (provable)

The form of proposition 2, ``max(f(0), f(1)) + K D alpha (1 - alpha)``, has half of that hill and does not follow: the
tent ``f(alpha) = K D min(alpha, 1 - alpha)`` reaches K D / 2 at its middle and the form allows K D / 4. It does hold if
K is read as half the smoothness times the distance: ``f'' >= -beta D^2`` gives
``f(alpha) <= (1 - alpha) f(0) + alpha f(1) + beta D^2 alpha (1 - alpha) / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray
from popmi_core.metrics.connectivity import check_path


@dataclass(frozen=True, eq=False)
class LineBound:
    """The three forms at every point of the line, nats, ``[points]``, beside the loss itself.

    Attributes:
        losses: The measured loss.
        stated: Proposition 2 as written (not implied by a Lipschitz constant).
        provable: The same with twice the hill.
        tight: The smallest that follows from the two ends and the constant.
        trivial: Loss of the best answer that looks at no image, nats.
    """

    losses: FloatArray
    stated: FloatArray
    provable: FloatArray
    tight: FloatArray
    trivial: float

    def vacuous(self, form: FloatArray) -> int:
        """Return at how many points ``form`` promises no more than a model that looks at no image."""
        return int((form >= self.trivial).sum())

    def broken(self, form: FloatArray) -> int:
        """Return at how many points the measured loss lies above ``form`` (by more than rounding)."""
        return int((self.losses > form + 1e-9 * (1 + np.abs(form))).sum())


def line_bound(losses: ArrayLike, *, lipschitz: float, distance: float, trivial: float) -> LineBound:
    """Return the bounds at the points of ``losses``.

    Args:
        losses: Loss at equally spaced points of the line, nats, ``[points]``, both ends among them.
        lipschitz: Lipschitz constant K of the loss on the segment, nats per unit of weight.
        distance: ``|W1 - W2|_F``.
        trivial: Loss of the best constant answer: the entropy of the classes' shares, at most ``ln(classes)``.

    Raises:
        UpdateError: If there are fewer than three points, one is not finite, or a constant is negative.
    """
    path = check_path(losses, "losses")
    if not (lipschitz >= 0 and distance >= 0):
        raise UpdateError(
            f"line_bound: Lipschitz constant {lipschitz:g} and distance {distance:g}, expected both at least 0. "
            "Estimate them on finite losses."
        )
    alpha, rise = np.linspace(0.0, 1.0, len(path)), lipschitz * distance
    ends, hill = max(path[0], path[-1]), rise * alpha * (1 - alpha)
    tight = np.minimum(path[0] + rise * alpha, path[-1] + rise * (1 - alpha))
    return LineBound(path, ends + hill, ends + 2 * hill, tight, trivial)


def slope_lipschitz(losses: ArrayLike, *, distance: float) -> float:
    """Return the steepest finite difference of the path per unit of weight: a lower estimate of K.

    With it the tight form holds at the sampled points by construction, whatever happens between them.

    Raises:
        UpdateError: If there are fewer than three points, one is not finite, or the ends are one model.
    """
    path = check_path(losses, "losses")
    if not distance > 0:
        raise UpdateError("slope_lipschitz: the two models are the same, expected a distance. There is no line.")
    return float(np.abs(np.diff(path)).max() * (len(path) - 1) / distance)


def prior_entropy(targets: ArrayLike) -> float:
    """Return the entropy of the classes' shares in ``targets [images]``, nats: what guessing by frequency costs.

    Raises:
        UpdateError: If there is no image.
    """
    counts = np.unique(np.asarray(targets), return_counts=True)[1]
    if not counts.size:
        raise UpdateError("prior_entropy: no image, expected at least one. Choose a split that is not empty.")
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
