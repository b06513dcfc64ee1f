"""The objective of one layer on its own: a permutation of units and a rotation of inputs.

The soft variant lets a unit be shared: entropic optimal transport (Cuturi 2013, arXiv:1306.0895) with a rotation, as in
Wasserstein-Procrustes (Grave, Joulin and Berthet 2019, arXiv:1805.11222).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order
from popmi_core.matching.procrustes import polar

# Sinkhorn ends when rows sum to 1 within this, or after so many rounds; in an alternation there is another turn soon.
_MARGIN, _ROUNDS, _ROUNDS_A_TURN = 1e-11, 1_000, 50
# Half a step that brings less than this share of the objective ends the alternation of the soft variant.
_SETTLED = 1e-8


@dataclass(frozen=True)
class LayerMatch:
    """``w1[i]`` is close to ``w2[perm[i]] @ rotation``; ``distances``: the objective after every half step.

    ``plan``: how much of each unit of W2 (columns) goes to each unit of W1, rows and columns sum to 1; of a hard match
    the permutation matrix. ``perm`` is the assignment closest to it.
    """

    perm: Int[Tensor, " units"]
    rotation: Float[Tensor, "fan fan"]
    distances: tuple[float, ...]
    plan: Float[Tensor, "units units"]


def match_layer(
    w1: Float[Tensor, "units fan"],
    w2: Float[Tensor, "units fan"],
    *,
    assignment: Literal["hard", "soft"] = "hard",
    entropic_reg: float = 0.01,
    starts: int = 8,
    sweeps: int = 100,
    generator: torch.Generator | None = None,
) -> LayerMatch:
    """Minimise ``|W1 - P W2 R|_F**2`` over permutations P and orthogonal R, or its entropic relaxation.

    By turns: the polar factor of ``W2^T P^T W1`` is the best R for a P, an assignment the best P for an R. Both are
    exact, so the objective never rises; the problem itself is not convex, hence several starts: the order as it is,
    the order by what no rotation changes (norms and inner products of units), and ``starts`` random ones (seeded by 0
    without a generator). Stand-alone: a free R per layer is no symmetry of a network (see docs/opm.md), ``match`` is.

    ``soft`` minimises ``sum_ij T_ij |w1_i - w2_j R|**2 + eps sum_ij T_ij log T_ij`` over doubly stochastic T instead,
    by the same turns with Sinkhorn's algorithm for T. ``entropic_reg``: eps as a share of the mean squared length of a
    unit of W1 and one of W2 together; towards 0 the plan becomes a permutation.

    Raises:
        UpdateError: If the shapes differ, a weight is NaN or infinite, or ``entropic_reg`` is not positive.
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
    turns = _alternate
    if assignment == "soft":
        if entropic_reg <= 0:
            raise UpdateError(f"match_layer: entropic_reg is {entropic_reg}, expected more than 0. Take 'hard' for 0.")
        scale = float(first.square().sum() + second.square().sum()) / len(first)
        # Layers of zeros have no scale: every plan is as good.
        turns = partial(_alternate_softly, reg=entropic_reg * scale if scale > 0 else 1.0)
    return min((turns(first, second, order, sweeps) for order in orders), key=lambda found: found.distances[-1])


def transport_plan(cost: Float[Tensor, "n n"], reg: float, *, rounds: int = _ROUNDS) -> Float[Tensor, "n n"]:
    """Return the doubly stochastic T that minimises ``sum_ij T_ij cost_ij + reg sum_ij T_ij log T_ij``, in float64.

    Sinkhorn's algorithm in the log domain (Peyre and Cuturi 2019, arXiv:1803.00567, section 4.4). Where ``rounds``
    are not enough (``reg`` far below the costs) the plan is near the best one; rows and columns sum to 1 to rounding
    in any case (Altschuler et al. 2017, arXiv:1705.09634, algorithm 2).
    """
    logits = -cost.double() / reg
    rows = torch.zeros(len(cost), 1, dtype=torch.float64)
    for _ in range(rounds):
        columns = -(logits + rows).logsumexp(0, keepdim=True)
        change = -(logits + columns).logsumexp(1, keepdim=True)
        # By so much the logarithms of the rows' sums are off.
        settled = float((change - rows).abs().max()) <= _MARGIN
        rows = change
        if settled:
            break
    return _feasible((logits + rows + columns).exp())


def _feasible(plan: Tensor) -> Tensor:
    """Scale rows and columns down to 1, and spread what is missing."""
    plan = plan / plan.sum(1, keepdim=True).clamp_min(1)
    plan = plan / plan.sum(0, keepdim=True).clamp_min(1)
    rows, columns = (1 - plan.sum(1, keepdim=True)).clamp_min(0), (1 - plan.sum(0, keepdim=True)).clamp_min(0)
    missing = rows.sum()
    return plan + rows @ columns / missing if missing > 0 else plan


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
    return LayerMatch(perm, rotation, tuple(distances), torch.eye(len(perm), dtype=w1.dtype)[perm])


def _alternate_softly(w1: Tensor, w2: Tensor, perm: Tensor, sweeps: int, *, reg: float) -> LayerMatch:
    rotation = polar(w2[perm].T @ w1)
    plan = transport_plan(_costs(w1, w2, rotation), reg, rounds=_ROUNDS_A_TURN)
    distances = [_soft_distance(w1, w2, plan, rotation, reg)]
    for _ in range(sweeps):
        rotation = polar(w2.T @ plan.T @ w1)
        distances.append(_soft_distance(w1, w2, plan, rotation, reg))
        found = transport_plan(_costs(w1, w2, rotation), reg, rounds=_ROUNDS_A_TURN)
        reached = _soft_distance(w1, w2, found, rotation, reg)
        # Where Sinkhorn ran out of rounds a plan may be worse: the last one stays.
        if distances[-1] - reached <= _SETTLED * abs(distances[0]):
            break
        plan = found
        distances.append(reached)
    return LayerMatch(best_order(plan), rotation, tuple(distances), plan)


def _costs(w1: Tensor, w2: Tensor, rotation: Tensor) -> Tensor:
    return w1.square().sum(1)[:, None] + w2.square().sum(1) - 2 * w1 @ (w2 @ rotation).T


def _soft_distance(w1: Tensor, w2: Tensor, plan: Tensor, rotation: Tensor, reg: float) -> float:
    return float((plan * _costs(w1, w2, rotation)).sum() + reg * torch.special.xlogy(plan, plan).sum())


def _order_by_invariants(w1: Tensor, w2: Tensor) -> Tensor:
    one, other = _invariants(w1), _invariants(w2)
    return best_order(-torch.cdist(one, other).square())


def _invariants(weight: Tensor) -> Tensor:
    gram = weight @ weight.T
    return torch.cat([gram.diagonal()[:, None], gram.sort(dim=1).values], dim=1)


def _distance(w1: Tensor, w2: Tensor, perm: Tensor, rotation: Tensor) -> float:
    return float((w1 - w2[perm] @ rotation).square().sum())
