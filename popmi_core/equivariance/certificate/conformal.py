"""The statistical part of the certificate: by how much turning may change an answer, for most images of a site.

Split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, arXiv:1604.04173, theorem 2.2): with n
calibration images and a new one exchangeable with them, the score of the new one is at most the k-th smallest of
theirs, k = ceil((n + 1)(1 - alpha)), with probability at least 1 - alpha, and at most 1 - alpha + 1/(n + 1) without
ties. Given the calibration images, coverage is a random number distributed as Beta(k, n + 1 - k), or better with ties.
Nothing is assumed of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float64
from scipy.stats import beta

from popmi_core.errors import ModelError
from popmi_core.metrics.turning import softmax

Numbers = npt.NDArray[np.float64]
_SURE = 0.95


@dataclass(frozen=True)
class Conformal:
    """One site's bound on the total variation between turned and upright answers, sup over the sampled angles.

    Attributes:
        site: Name.
        images: Calibration images.
        tested: Images held back, on which coverage was counted.
        level: 1 - alpha, asked for.
        bound: Total variation, 0 to 1; 1 says nothing (too few images for the level).
        coverage: Share of the held back images within the bound; None without any.
        surely: Coverage is at least this with 95 % confidence over the choice of calibration images.
        median: Of the scores of the calibration images, and ``worst`` the largest of all.
        angles: How many angles were sampled; nothing is said of angles between.
    """

    site: str
    images: int
    tested: int
    level: float
    bound: float
    coverage: float | None
    surely: float
    median: float
    worst: float
    angles: int


def variation(logits: Float64[Numbers, "angles n classes"]) -> Float64[Numbers, " n"]:
    """Return for each image the largest total variation, 0 to 1, between a turned answer and the upright one."""
    scores = softmax(np.asarray(logits, dtype=np.float64))
    worst: Numbers = (np.abs(scores - scores[:1]).sum(axis=2) / 2).max(axis=0)
    return worst


def quantile(scores: Float[Numbers, " n"], alpha: float) -> float:
    """Return the k-th smallest score, k = ceil((n + 1)(1 - alpha)); infinity where there are too few.

    Raises:
        ModelError: If alpha is not between 0 and 1, or a score is not finite.
    """
    if not 0 < alpha < 1 or not len(scores) or not np.isfinite(scores).all():
        raise ModelError(
            f"a conformal bound at alpha = {alpha} of {len(scores)} scores, expected 0 < alpha < 1 and finite scores. "
            "Choose another level, or look at the model: it may answer NaN."
        )
    # The product is rounded first: 0.9 * 10 must not become 9.000000000000002.
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def conformal(
    site: str, logits: Float64[Numbers, "angles n classes"], *, alpha: float, generator: np.random.Generator
) -> Conformal:
    """Split a site's images into halves at random: one gives the bound, the other shows how often it holds.

    Raises:
        ModelError: If there are fewer than two images, alpha is not between 0 and 1, or logits are not finite.
    """
    scores = variation(logits)
    count = len(scores)
    if count < 2:
        raise ModelError(f"site {site} has {count} image(s), expected at least 2: one to calibrate, one to test.")
    order = generator.permutation(count)
    first, second = scores[order[: (count + 1) // 2]], scores[order[(count + 1) // 2 :]]
    found = quantile(first, alpha)
    rank = math.ceil(round((len(first) + 1) * (1 - alpha), 9))
    surely = float(beta.ppf(1 - _SURE, rank, len(first) + 1 - rank)) if rank <= len(first) else 1.0
    bound = min(found, 1.0)
    return Conformal(
        site, len(first), len(second), 1 - alpha, bound, float((second <= bound).mean()), surely,
        float(np.median(first)), float(scores.max()), len(logits),
    )  # fmt: skip
