"""Block-exact coordinate descent: heads, hidden units, stream, until no block improves.

Maximises ``<A, g B>`` over group elements g, which for rows in balanced bases is the same as minimising the distance
``|A - g B|^2``. Every step solves its block exactly, so the distance never rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.matching.assignment import best_order, match_units, neighbour_room
from popmi_core.matching.factors import Factors, HeadFactors
from popmi_core.matching.procrustes import cross_covariance, polar, stream_rotation, turn
from popmi_core.matching.symmetry import ViTSymmetry

# A sweep that brings the models closer by less than this share ends the descent.
_SETTLED = 1e-10


@dataclass(frozen=True)
class Position:
    """Where the descent stands; ``stream`` None is exactly the identity."""

    stream: Float[Tensor, "dim dim"] | None
    heads: Mapping[int, Int[Tensor, " heads"]] = field(default_factory=dict)
    hidden: Mapping[int, Int[Tensor, " units"]] = field(default_factory=dict)
    distances: tuple[float, ...] = ()

    @property
    def same_basis(self) -> bool:
        """No rotation, and every unit and head in its place."""
        orders = (*self.heads.values(), *self.hidden.values())
        return self.stream is None and all(is_identity(order) for order in orders)


class Target:
    """The reference's rows in balanced bases, and what is computed once for all candidates."""

    def __init__(self, factors: Factors, symmetry: ViTSymmetry) -> None:
        self.factors = factors
        self.symmetry = symmetry
        self.room = {i: neighbour_room(rows) for i, rows in factors.hidden.items()}
        self.head_room = {i: self._head_room(i, rows) for i, rows in factors.heads.items()}

    def linear(self, index: int) -> bool:
        """Whether queries and keys of this layer may change their basis."""
        return self.symmetry.heads[index].query_key == "linear"

    def head_scores(self, index: int, candidate: HeadFactors) -> Float[Tensor, "heads heads"]:
        """Return how well every head of the candidate can be turned into every head of the reference."""
        own = self.factors.heads[index]
        return _overlap(own.query_key, candidate.query_key, self.linear(index)) + _overlap(
            own.value, candidate.value, True
        )

    def order_heads(self, index: int, candidate: HeadFactors) -> Int[Tensor, " heads"]:
        """Return the best order of heads; the identity without an assignment where it is certain."""
        own = self.factors.heads[index]
        diagonal = _paired(own.query_key, candidate.query_key, self.linear(index)) + _paired(
            own.value, candidate.value, True
        )
        distance = (_energy(own) + _energy(candidate) - 2 * diagonal).clamp_min(0).sqrt()
        if bool((distance <= self.head_room[index]).all()):
            return torch.arange(len(diagonal))
        return best_order(self.head_scores(index, candidate))

    def _head_room(self, index: int, rows: HeadFactors) -> Tensor:
        # Distances between orbits: a metric too, so the certificate's triangle inequality holds for heads.
        energy = _energy(rows)
        table = energy[:, None] + energy[None] - 2 * self.head_scores(index, rows)
        table = table.clamp_min(0).sqrt().fill_diagonal_(torch.inf)
        return table.min(dim=1).values / 2


def descend(target: Target, candidate: Factors, *, start: Tensor | None, sweeps: int) -> Position:
    """Return the best position reachable from ``start`` (None: the identity, kept unless leaving it clearly pays)."""
    stream, distances = start, list[float]()
    heads, hidden = _order(target, candidate, stream)
    energy = _total_energy(target.factors) + _total_energy(candidate)
    distances.append(energy - 2 * _score(target, candidate, stream, heads, hidden))
    for _ in range(sweeps):
        if target.symmetry.stream == "orthogonal":
            stream = _turned(target, candidate, stream, heads, hidden, distances[-1])
        heads, hidden = _order(target, candidate, stream)
        distances.append(energy - 2 * _score(target, candidate, stream, heads, hidden))
        if distances[-2] - distances[-1] <= _SETTLED * energy:
            break
    return Position(stream, heads, hidden, tuple(max(0.0, distance) for distance in distances))


def worth_turning(before: float, after: float, *, turns: int, numbers: int) -> bool:
    """Return whether a basis change of ``turns`` degrees of freedom explains more than chance.

    A random drift of ``numbers`` weights loses the share ``turns / numbers`` of its squared length to the best basis
    change. Only a change that takes off twice that (at least 5 %, at most half) is one of basis rather than of drift.
    """
    share = min(max(2 * turns / numbers, 0.05), 0.5)
    return before - after > share * before


def aligned_heads(reference: HeadFactors, moved: HeadFactors, *, linear: bool) -> tuple[Tensor, Tensor]:
    """Return the orthogonal maps inside every (already paired and turned) head."""
    value = polar(reference.value @ moved.value.mT)
    if linear:
        return polar(reference.query_key @ moved.query_key.mT), value
    return torch.eye(value.shape[-1], dtype=value.dtype).expand_as(value), value


def embedding_start(target: Target, candidate: Factors) -> Float[Tensor, "dim dim"]:
    """Return the rotation that fits patch, position and class embeddings, head and stream biases alone."""
    return stream_rotation(cross_covariance(target.factors.outer, candidate.outer, candidate.dim))


def pick_heads(rows: HeadFactors, order: Tensor, stream: Tensor | None) -> HeadFactors:
    """Return the candidate's heads in this order with the stream turned."""
    return HeadFactors(turn(rows.query_key[order], stream), turn(rows.value[order], stream))


def is_identity(order: Int[Tensor, " units"]) -> bool:
    """Whether an order leaves everything in place."""
    return bool((order == torch.arange(len(order))).all())


def _order(target: Target, candidate: Factors, stream: Tensor | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    heads = {}
    for index, rows in candidate.heads.items():
        turned = HeadFactors(turn(rows.query_key, stream), turn(rows.value, stream))
        heads[index] = target.order_heads(index, turned)
    hidden = {}
    for index, units in candidate.hidden.items():
        hidden[index] = match_units(target.factors.hidden[index], turn(units, stream), room=target.room[index])
    return heads, hidden


def _turned(
    target: Target,
    candidate: Factors,
    stream: Tensor | None,
    heads: Mapping[int, Tensor],
    hidden: Mapping[int, Tensor],
    distance: float,
) -> Tensor | None:
    dim = candidate.dim
    cross = cross_covariance(target.factors.outer, candidate.outer, dim)
    numbers = candidate.outer.numel()
    for index, order in heads.items():
        own, moved = target.factors.heads[index], pick_heads(candidate.heads[index], order, stream)
        query_key, value = aligned_heads(own, moved, linear=target.linear(index))
        rows = candidate.heads[index]
        cross = cross + cross_covariance(own.query_key, query_key @ rows.query_key[order], dim)
        cross = cross + cross_covariance(own.value, value @ rows.value[order], dim)
        numbers += rows.query_key.numel() + rows.value.numel()
    for index, order in hidden.items():
        cross = cross + cross_covariance(target.factors.hidden[index], candidate.hidden[index][order], dim)
        numbers += candidate.hidden[index].numel()
    found = stream_rotation(cross)
    before = cross.trace() if stream is None else (cross * stream).sum()
    gain = 2 * float((cross * found).sum() - before)
    turns = (dim - 1) * (dim - 2) // 2
    if stream is None and not worth_turning(distance, distance - gain, turns=turns, numbers=numbers):
        return None
    return found


def _score(
    target: Target,
    candidate: Factors,
    stream: Tensor | None,
    heads: Mapping[int, Tensor],
    hidden: Mapping[int, Tensor],
) -> float:
    total = (target.factors.outer * turn(candidate.outer, stream)).sum()
    for index, order in heads.items():
        own, moved = target.factors.heads[index], pick_heads(candidate.heads[index], order, stream)
        total = total + _paired(own.query_key, moved.query_key, target.linear(index)).sum()
        total = total + _paired(own.value, moved.value, True).sum()
    for index, order in hidden.items():
        total = total + (target.factors.hidden[index] * turn(candidate.hidden[index][order], stream)).sum()
    return float(total)


def _overlap(first: Tensor, second: Tensor, linear: bool) -> Float[Tensor, "heads heads"]:
    cross = torch.einsum("ikw,jlw->ijkl", first, second)
    return torch.linalg.svdvals(cross).sum(-1) if linear else cross.diagonal(dim1=-2, dim2=-1).sum(-1)


def _paired(first: Tensor, second: Tensor, linear: bool) -> Float[Tensor, " heads"]:
    cross = first @ second.mT
    return torch.linalg.svdvals(cross).sum(-1) if linear else cross.diagonal(dim1=-2, dim2=-1).sum(-1)


def _energy(rows: HeadFactors) -> Float[Tensor, " heads"]:
    return rows.query_key.square().sum((-2, -1)) + rows.value.square().sum((-2, -1))


def _total_energy(factors: Factors) -> float:
    total = factors.outer.square().sum() + sum(rows.square().sum() for rows in factors.hidden.values())
    return float(total + sum(_energy(rows).sum() for rows in factors.heads.values()))
