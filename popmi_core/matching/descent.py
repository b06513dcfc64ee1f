"""Block-exact coordinate descent: heads, hidden units, stream, until no block improves.

Maximises ``<A, g B>`` over group elements g, which for rows in balanced bases is the same as minimising the distance
``|A - g B|^2``. Every step solves its block exactly, so the distance never rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.matching.assignment import best_order, match_units, neighbour_room
from popmi_core.matching.factors import Factors, HeadFactors
from popmi_core.matching.procrustes import cross_covariance, polar, stream_rotation, turn
from popmi_core.matching.symmetry import ViTSymmetry

# A sweep that brings the models closer by less than this share of their size ends the descent.
_SETTLED = 1e-10


@dataclass(frozen=True)
class Pairing:
    """One layer's heads: their order, the orthogonal maps inside them, and the inner product reached."""

    order: Int[Tensor, " heads"]
    query_key: Float[Tensor, "heads head_dim head_dim"]
    value: Float[Tensor, "heads head_dim head_dim"]
    overlap: float


@dataclass(frozen=True)
class Position:
    """Where the descent stands; ``stream`` None is exactly the identity. ``distances``: after every sweep."""

    stream: Float[Tensor, "dim dim"] | None
    heads: Mapping[int, Pairing]
    hidden: Mapping[int, Int[Tensor, " units"]]
    distances: tuple[float, ...] = ()

    @property
    def same_basis(self) -> bool:
        """No rotation, and every unit and head in its place."""
        orders = (*(pairing.order for pairing in self.heads.values()), *self.hidden.values())
        return self.stream is None and all(is_identity(order) for order in orders)


class Target:
    """The reference's rows in balanced bases, and what is computed once for all candidates."""

    def __init__(self, factors: Factors, symmetry: ViTSymmetry) -> None:
        self.factors = factors
        self.symmetry = symmetry
        self.energy = _total_energy(factors)
        self.room = {i: neighbour_room(rows) for i, rows in factors.hidden.items()}
        self._head_room = {i: self._nearest_head(i, rows) for i, rows in factors.heads.items()}

    def linear(self, index: int) -> bool:
        """Whether queries and keys of this layer may change their basis."""
        return self.symmetry.heads[index].query_key == "linear"

    def pair_heads(self, index: int, candidate: HeadFactors) -> Pairing:
        """Return the best order of heads; the identity without an assignment where it is certain."""
        own = self.factors.heads[index]
        order = torch.arange(len(own.value))
        pairing, overlap = self._align(index, candidate, order)
        distance = (_energy(own) + _energy(candidate) - 2 * overlap).clamp_min(0).sqrt()
        if bool((distance <= self._head_room[index]).all()):
            return pairing
        best = best_order(self._scores(index, candidate))
        return pairing if is_identity(best) else self._align(index, candidate, best)[0]

    def _align(self, index: int, candidate: HeadFactors, order: Tensor) -> tuple[Pairing, Tensor]:
        own = self.factors.heads[index]
        query_key, first = _aligned(own.query_key, candidate.query_key[order], self.linear(index))
        value, second = _aligned(own.value, candidate.value[order], True)
        return Pairing(order, query_key, value, float((first + second).sum())), first + second

    def _scores(self, index: int, candidate: HeadFactors) -> Float[Tensor, "heads heads"]:
        own = self.factors.heads[index]
        scores = _overlaps(own.query_key, candidate.query_key, self.linear(index))
        return scores + _overlaps(own.value, candidate.value, True)

    def _nearest_head(self, index: int, rows: HeadFactors) -> Float[Tensor, " heads"]:
        # Distances between orbits: a metric too, so the certificate's triangle inequality holds for heads.
        energy = _energy(rows)
        table = energy[:, None] + energy[None] - 2 * self._scores(index, rows) - 1e-12 * energy.max()
        return table.fill_diagonal_(torch.inf).min(dim=1).values.clamp_min(0).sqrt() / 2


def descend(target: Target, candidate: Factors, *, start: Tensor | None, sweeps: int) -> Position:
    """Return the best position reachable from ``start`` (None: the identity, kept unless leaving it clearly pays)."""
    energy = target.energy + _total_energy(candidate)
    here = _pair(target, candidate, start, energy)
    distances = list(here.distances)
    for _ in range(sweeps if target.symmetry.stream == "orthogonal" else 0):
        stream = _turned(target, candidate, here)
        if stream is None:
            break
        here = _pair(target, candidate, stream, energy)
        distances += here.distances
        if distances[-2] - distances[-1] <= _SETTLED * energy:
            break
    return Position(here.stream, here.heads, here.hidden, tuple(distances))


def worth_turning(
    before: Tensor, after: Tensor, *, turns: int, numbers: int, energy: Tensor | float, kin: bool = False
) -> Tensor:
    """Return, from squared distances, whether a basis change of ``turns`` degrees of freedom explains more than chance.

    A random drift of ``numbers`` weights loses the share ``turns / numbers`` of its squared length to the best basis
    change. Only a change that takes off twice that (at least 5 %, at most half) is one of basis rather than of drift;
    and a distance that is rounding next to the squared length (``energy``) is none. Training's drift is not random
    but of low rank, and loses more: where everything else says that one model stems from the other (``kin``), a
    change has to take off half at least, and up to three quarters where chance alone would take off half.
    """
    least, most = (0.5, 0.75) if kin else (0.05, 0.5)
    share = min(max(2 * turns / numbers, least), most)
    return before - after > share * before + _SETTLED * energy


def embedding_start(target: Target, candidate: Factors) -> Float[Tensor, "dim dim"]:
    """Return the rotation that fits patch, position and class embeddings, head and stream biases alone."""
    return stream_rotation(cross_covariance(target.factors.outer, candidate.outer, candidate.dim))


def pick_heads(rows: HeadFactors, order: Tensor, stream: Tensor | None) -> HeadFactors:
    """Return the candidate's heads in this order with the stream turned."""
    return HeadFactors(turn(rows.query_key[order], stream), turn(rows.value[order], stream))


def is_identity(order: Int[Tensor, " units"]) -> bool:
    """Whether an order leaves everything in place."""
    return bool((order == torch.arange(len(order))).all())


def _pair(target: Target, candidate: Factors, stream: Tensor | None, energy: float) -> Position:
    """Solve heads and hidden units exactly for this rotation."""
    overlap = float((target.factors.outer * turn(candidate.outer, stream)).sum())
    heads: dict[int, Pairing] = {}
    for index, rows in candidate.heads.items():
        turned = HeadFactors(turn(rows.query_key, stream), turn(rows.value, stream))
        heads[index] = target.pair_heads(index, turned)
        overlap += heads[index].overlap
    hidden: dict[int, Tensor] = {}
    for index, units in candidate.hidden.items():
        own, turned_units = target.factors.hidden[index], turn(units, stream)
        hidden[index] = match_units(own, turned_units, room=target.room[index])
        overlap += float((own * turned_units[hidden[index]]).sum())
    return Position(stream, heads, hidden, (max(0.0, energy - 2 * overlap),))


def _turned(target: Target, candidate: Factors, here: Position) -> Tensor | None:
    """Return the best rotation for these pairings; None if the identity stands and leaving it would not clearly pay."""
    dim = candidate.dim
    cross = cross_covariance(target.factors.outer, candidate.outer, dim)
    numbers = candidate.outer.numel()
    for index, pairing in here.heads.items():
        own, rows = target.factors.heads[index], candidate.heads[index]
        cross = cross + cross_covariance(own.query_key, pairing.query_key @ rows.query_key[pairing.order], dim)
        cross = cross + cross_covariance(own.value, pairing.value @ rows.value[pairing.order], dim)
        numbers += rows.query_key.numel() + rows.value.numel()
    for index, order in here.hidden.items():
        cross = cross + cross_covariance(target.factors.hidden[index], candidate.hidden[index][order], dim)
        numbers += candidate.hidden[index].numel()
    found = stream_rotation(cross)
    if here.stream is None:
        before = torch.tensor(here.distances[-1], dtype=torch.float64)
        after = before - 2 * ((cross * found).sum() - cross.trace())
        turns = (dim - 1) * (dim - 2) // 2
        if not bool(worth_turning(before, after, turns=turns, numbers=numbers, energy=target.energy)):
            return None
    return found


def _overlaps(first: Tensor, second: Tensor, linear: bool) -> Float[Tensor, "heads heads"]:
    """Return the best inner product of every pair of heads over orthogonal maps: nuclear norms."""
    cross = torch.einsum("ikw,jlw->ijkl", first, second)
    return torch.linalg.svdvals(cross).sum(-1) if linear else cross.diagonal(dim1=-2, dim2=-1).sum(-1)


def _aligned(first: Tensor, second: Tensor, linear: bool) -> tuple[Tensor, Float[Tensor, " heads"]]:
    """Return the best orthogonal map of every paired head, and the inner products reached."""
    cross = first @ second.mT
    maps = polar(cross) if linear else torch.eye(cross.shape[-1], dtype=cross.dtype).expand_as(cross)
    return maps, (maps * cross).sum((-2, -1))


def _energy(rows: HeadFactors) -> Float[Tensor, " heads"]:
    return rows.query_key.square().sum((-2, -1)) + rows.value.square().sum((-2, -1))


def _total_energy(factors: Factors) -> float:
    total = factors.outer.square().sum() + sum(rows.square().sum() for rows in factors.hidden.values())
    return float(total + sum(_energy(rows).sum() for rows in factors.heads.values()))
