"""Permutations: which unit of the candidate is which unit of the reference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
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


def match_units(
    reference: Float[Tensor, "units fan"],
    candidate: Float[Tensor, "units fan"],
    *,
    room: Float[Tensor, " units"] | None = None,
) -> Int[Tensor, " units"]:
    """Return the order of ``candidate``'s units closest to ``reference`` (Ainsworth et al. 2023, arXiv:2209.04836).

    Minimises ``sum_i |reference[i] - candidate[perm[i]]|**2``. With ``room`` (see ``neighbour_room``) the identity
    is returned without an assignment where it is certain to be best.

    Raises:
        UpdateError: If the shapes differ or a weight is NaN or infinite.
    """
    if reference.shape != candidate.shape:
        raise UpdateError(
            f"matching: the candidate's units have shape {tuple(candidate.shape)}, expected {tuple(reference.shape)}. "
            "Check that the site runs the same model configuration."
        )
    if room is not None and bool(certified(reference, candidate, room).all()):
        return torch.arange(len(reference))
    return best_order(reference @ candidate.T)


def neighbour_room(reference: Float[Tensor, "units fan"]) -> Float[Tensor, " units"]:
    """Return half of each unit's distance to its nearest other unit: how far it can move and still be itself."""
    if len(reference) < 2:
        return torch.full((len(reference),), torch.inf, dtype=reference.dtype)
    energy = reference.square().sum(dim=1)
    table = energy[:, None] + energy[None] - 2 * reference @ reference.T
    # The slack covers what cancellation takes from inner products: duplicates must not look apart.
    table = table - 1e-12 * energy.max()
    return table.fill_diagonal_(torch.inf).min(dim=1).values.clamp_min(0).sqrt() / 2


def certified(
    reference: Float[Tensor, "units fan"], candidate: Float[Tensor, "units fan"], room: Float[Tensor, " units"]
) -> Bool[Tensor, " units"]:
    """Return for each unit whether it certainly stayed itself: ``|b_i - a_i| <= 1/2 min_j |a_i - a_j|``.

    Then no other ``b_j`` is needed to see it: by the triangle inequality ``|b_i - a_i| <= |b_i - a_j|`` for all j, so
    if it holds for every unit, the identity is a best permutation.
    """
    return (candidate - reference).norm(dim=1) <= room
