"""Which unit becomes which: assignments and transport plans, for units and for units inside heads, groups and fields.

A plan is doubly stochastic (rows and columns sum to one): entry (i, j) is how much of old unit j becomes new unit i. A
permutation is the special case of zeros and ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from popmi_core.matching.elements import Move
from popmi_core.matching.symmetry import Space

Plan = npt.NDArray[np.float64]
Solver = Callable[[Plan], Plan]
# How far from one a row's largest entry may be in a permutation that came out of a transport solver.
_ROUNDED = 1e-6
# Rows of a soft plan sum to one exactly; how far its columns may be off (Euclidean, all together).
_MARGIN = 1e-3


def assign(cost: Plan) -> Plan:
    """Return the permutation of least cost (Jonker-Volgenant, exact, O(units**3))."""
    plan = np.zeros(cost.shape)
    plan[linear_sum_assignment(cost)] = 1.0
    return plan


def exact(cost: Plan) -> Plan:
    """Return the optimal transport plan between uniform marginals (POT's network simplex); a permutation."""
    import ot  # slow to load, and the sites have no use for it

    weights = np.full(len(cost), 1 / len(cost))
    return np.asarray(ot.emd(weights, weights, cost), dtype=np.float64) * len(cost)


def entropic(softness: float) -> Solver:
    """Return a solver for entropic transport between uniform marginals (Cuturi 2013, arXiv:1306.0895).

    ``softness`` is the entropy's weight in units of the mean cost. Log-stabilised, so that small ones do not underflow
    (Schmitzer 2019, arXiv:1610.06519, as in POT).
    """

    def solve(cost: Plan) -> Plan:
        mean = float(cost.mean())
        if len(cost) == 1 or mean <= 0:
            return np.full(cost.shape, 1 / len(cost))
        import ot  # as in exact()

        # The exact solution's prices of rows and columns do not change the plan, but leave little to iterate.
        weights = np.full(len(cost), 1 / len(cost))
        prices = ot.emd(weights, weights, cost / mean, log=True)[1]
        reduced = cost / mean - prices["u"][:, None] - prices["v"]
        plan = _sinkhorn(reduced, softness, "sinkhorn_stabilized")
        if not np.isfinite(plan).all():
            # Slower by far, but nothing can underflow in it.
            plan = _sinkhorn(reduced, softness, "sinkhorn_log")
        return plan

    return solve


def _sinkhorn(cost: Plan, softness: float, method: str) -> Plan:
    import ot

    weights, options = np.full(len(cost), 1 / len(cost)), {"numItermax": 300, "stopThr": _MARGIN / len(cost)}
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # POT tells of underflow by a warning; the caller looks at the plan itself.
        warnings.simplefilter("ignore", UserWarning)
        found = ot.sinkhorn(weights, weights, cost, softness, method=method, warn=False, **options)
    plan = np.asarray(found, dtype=np.float64) * len(cost)
    return plan / plan.sum(axis=1, keepdims=True)


def solve(
    space: Space, costs: Mapping[str, Float[Tensor, "width width"]], solver: Solver, parts: Collection[str]
) -> dict[str, Plan]:
    """Return one plan per part of a space, of the kind its group allows.

    Two levels are solved from the inside: first every pair of heads (groups, fields) for what their channels cost each
    other at best, then the heads by these costs. For permutations that is exact: what happens inside one pair does not
    bear on another.

    Args:
        space: Units, groups of units, heads or fields.
        costs: By part, the cost of every old unit (columns) in the place of every new one (rows).
        solver: Solves one level.
        parts: The parts to plan for; those without a cost follow the others.
    """
    if space.kind in ("permutation", "orthogonal"):
        return {"": solver(costs[""].numpy())}
    own = "" if space.kind == "heads" else None
    total = costs[""].numpy().copy() if own in costs else np.zeros((space.size, space.size))
    inside: dict[str, Plan] = {}
    for part, cost in costs.items():
        if part != own:
            blocks = cost.numpy().reshape(space.size, space.inner, space.size, space.inner).transpose(0, 2, 1, 3)
            inside[part] = _inside(space, part, blocks, solver)
            total += (inside[part] * blocks).sum(axis=(2, 3))
    outer = solver(total)
    still = np.eye(space.inner)[None, None]
    return {part: outer if part == own else _join(outer, inside.get(part, still)) for part in parts}


def _inside(space: Space, part: str, blocks: Plan, solver: Solver) -> Plan:
    """Return the best plan inside every pair."""
    if space.kind == "heads" and space.maps[part] == "fixed":
        return np.broadcast_to(np.eye(space.inner), blocks.shape)
    if space.kind == "fields":
        # Only shifts commute with the group, and they do so mixed as well: the outer plan may be soft.
        table = np.eye(space.inner)[np.array(space.shifts)]
        prices = np.einsum("ijcd,scd->ijs", blocks, table)
        return np.asarray(table[prices.argmin(axis=2)])
    return np.stack([np.stack([solver(block) for block in row]) for row in blocks])


def _join(outer: Plan, inside: Plan) -> Plan:
    size, inner = len(outer), inside.shape[-1]
    joined = outer[:, :, None, None] * inside
    return np.ascontiguousarray(joined.transpose(0, 2, 1, 3)).reshape(size * inner, size * inner)


def as_move(plan: Plan) -> Move | None:
    """Return what a plan does to its units: an order, a mixing matrix, or None where everything stays."""
    largest = plan.argmax(axis=1)
    if plan.max(axis=1).min() > 1 - _ROUNDED and len(set(largest.tolist())) == len(plan):
        order = torch.from_numpy(largest)
        return None if bool((order == torch.arange(len(order))).all()) else Move(perm=order)
    return Move(rotation=torch.from_numpy(plan))
