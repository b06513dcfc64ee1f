"""The objective of one layer on its own: a permutation of units and a rotation of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order
from popmi_core.matching.procrustes import polar


@dataclass(frozen=True)
class LayerMatch:
    """``w1[i]`` is close to ``w2[perm[i]] @ rotation``; ``distances``: the objective after every half step."""

    perm: Int[Tensor, " units"]
    rotation: Float[Tensor, "fan fan"]
    distances: tuple[float, ...]


def match_layer(
    w1: Float[Tensor, "units fan"],
    w2: Float[Tensor, "units fan"],
    *,
    starts: int = 8,
    sweeps: int = 100,
    generator: torch.Generator | None = None,
) -> LayerMatch:
    """Minimise ``|W1 - P W2 R|_F**2`` over permutations P and orthogonal R.

    By turns: the polar factor of ``W2^T P^T W1`` is the best R for a P, an assignment the best P for an R. Both are
    exact, so the objective never rises; the problem itself is not convex, hence several starts: the order as it is,
    the order by what no rotation changes (norms and inner products of units), and ``starts`` random ones (seeded by 0
    without a generator). Stand-alone: a free R per layer is no symmetry of a network (see docs/opm.md), ``match`` is.

    Raises:
        UpdateError: If the shapes differ or a weight is NaN or infinite.
    """
    if w1.shape != w2.shape or w1.ndim != 2:
        raise UpdateError(
            f"match_layer: W2 has shape {tuple(w2.shape)}, expected a matrix like W1, {tuple(w1.shape)}. "
            "Compare the same layer of two models."
        )
    if not bool(torch.isfinite(w1).all() and torch.isfinite(w2).all()):
        raise UpdateError("match_layer: a weight is NaN or infinite, expected finite ones. Quarantine the update.")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    first, second = w1.double(), w2.double()
    orders = [torch.arange(len(w1)), _order_by_invariants(first, second)]
    orders += [torch.randperm(len(w1), generator=source) for _ in range(starts)]
    return min((_alternate(first, second, order, sweeps) for order in orders), key=lambda found: found.distances[-1])


def _alternate(w1: Tensor, w2: Tensor, perm: Tensor, sweeps: int) -> LayerMatch:
    rotation = polar(w2[perm].T @ w1)
    distances = [_distance(w1, w2, perm, rotation)]
    for _ in range(sweeps):
        found = best_order(w1 @ (w2 @ rotation).T)
        if bool((found == perm).all()):
            break
        perm = found
        distances.append(_distance(w1, w2, perm, rotation))
        rotation = polar(w2[perm].T @ w1)
        distances.append(_distance(w1, w2, perm, rotation))
    return LayerMatch(perm, rotation, tuple(distances))


def _order_by_invariants(w1: Tensor, w2: Tensor) -> Tensor:
    one, other = _invariants(w1), _invariants(w2)
    return best_order(-torch.cdist(one, other).square())


def _invariants(weight: Tensor) -> Tensor:
    gram = weight @ weight.T
    return torch.cat([gram.diagonal()[:, None], gram.sort(dim=1).values], dim=1)


def _distance(w1: Tensor, w2: Tensor, perm: Tensor, rotation: Tensor) -> float:
    return float((w1 - w2[perm] @ rotation).square().sum())
