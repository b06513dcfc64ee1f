"""From the balanced bases in which the descent runs back to the weights as they are: move only what pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popmi_core.matching.descent import Pairing, Position, Target, is_identity, pick_heads, worth_turning
from popmi_core.matching.elements import Element, HeadMove
from popmi_core.matching.factors import Factors, HeadBasis, rebase
from popmi_core.matching.procrustes import turn


@dataclass(frozen=True)
class Candidate:
    """One model's rows as they are and in balanced bases, and the maps between the two."""

    raw: Factors
    bases: Mapping[int, HeadBasis]
    balanced: Factors


@dataclass(frozen=True)
class _Side:
    """Query/key or value/output of one layer: the maps from the candidate's bases into the reference's."""

    change: Float[Tensor, "heads head_dim head_dim"]
    leave: Bool[Tensor, " heads"]
    before: float
    after: float


def settle(
    position: Position, target: Target, own_bases: Mapping[int, HeadBasis], candidate: Candidate
) -> tuple[Element, dict[str, float]]:
    """Return the group element of a position, and each layer's gain with all other moves in place."""
    kin = position.same_basis
    heads: dict[int, HeadMove] = {}
    hidden: dict[int, Tensor] = {}
    gains: dict[str, float] = {}
    for index, pairing in position.heads.items():
        move, gain = _settle_heads(index, pairing, position.stream, target, own_bases[index], candidate, kin=kin)
        gains[f"blocks.{index}.heads"] = gain
        if move is not None:
            heads[index] = move
    for index, order in position.hidden.items():
        own, rows = target.factors.hidden[index], turn(candidate.balanced.hidden[index], position.stream)
        gains[f"blocks.{index}.mlp"] = gain_of(_squared(own, rows), _squared(own, rows[order]))
        if not is_identity(order):
            hidden[index] = order
    return Element(position.stream, heads, hidden), gains


def gain_of(before: float, after: float) -> float:
    """Return the share of a squared distance that went away, 0 to 1 (0 where there was none)."""
    return max(0.0, 1 - after / before) if before > 0 else 0.0


def _settle_heads(
    index: int,
    pairing: Pairing,
    stream: Tensor | None,
    target: Target,
    own_basis: HeadBasis,
    candidate: Candidate,
    *,
    kin: bool,
) -> tuple[HeadMove | None, float]:
    own, basis, order = target.factors.heads[index], candidate.bases[index], pairing.order
    moved = pick_heads(candidate.balanced.heads[index], order, stream)
    # Both distances in the reference's balanced bases; unmoved heads only follow those.
    still = pick_heads(candidate.raw.heads[index], torch.arange(len(order)), stream)
    still = rebase(still, own_basis, candidate.raw.dim)
    kept = order == torch.arange(len(order))
    free = target.linear(index)
    sides = [
        _settle_side(own.query_key, moved.query_key, still.query_key, pairing.query_key, kept, free=free, kin=kin),
        _settle_side(own.value, moved.value, still.value, pairing.value, kept, free=True, kin=kin),
    ]
    before, after = (sum(getattr(side, when) for side in sides) for when in ("before", "after"))
    if all(bool(side.leave.all()) for side in sides) or after >= before:
        return None, 0.0
    query_key = _change(sides[0], own_basis.query_key, basis.query_key[order])
    return HeadMove(order, query_key, _change(sides[1], own_basis.value, basis.value[order])), gain_of(before, after)


def _settle_side(
    own: Tensor, moved: Tensor, still: Tensor, maps: Tensor, kept: Tensor, *, free: bool, kin: bool
) -> _Side:
    near = (own - maps @ moved).square().sum((-2, -1))
    far = (own - still).square().sum((-2, -1))
    turns, numbers = own.shape[-2] ** 2, own[0].numel()
    energy = own.square().sum((-2, -1))
    worth = worth_turning(far, near, turns=turns, numbers=numbers, energy=energy, kin=kin)
    leave = kept & ~worth if free else kept
    return _Side(maps, leave, float(far.sum()), float(torch.where(leave, far, near).sum()))


def _change(side: _Side, own_basis: Tensor, basis: Tensor) -> Tensor:
    """Return raw to balanced, turned, and back in the reference's bases; exactly one where a head is left."""
    change = torch.linalg.solve(own_basis, side.change @ basis)
    return torch.where(side.leave[:, None, None], torch.eye(change.shape[-1], dtype=change.dtype), change)


def _squared(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().sum())
