"""Permutations: which unit of the candidate is which unit of the reference."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from popmi_core.errors import UpdateError


def best_order(scores: Float[Tensor, "units units"]) -> Int[Tensor, " units"]:
    """Return the ``perm`` that maximises ``sum_i scores[i, perm[i]]`` (Jonker-Volgenant, exact, O(units**3)).

    Raises:
        UpdateError: If the scores are not a square of finite numbers.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise UpdateError(
            f"matching: scores have shape {tuple(scores.shape)}, expected a square. Compare layers of the same width."
        )
    if not bool(torch.isfinite(scores).all()):
        raise UpdateError("matching: a score is NaN or infinite, expected finite weights. Quarantine the update.")
    return torch.from_numpy(linear_sum_assignment(scores.numpy(), maximize=True)[1])
