"""One block of the descent: the best move of one space with all others held, solved exactly.

Maximises ``<A, g B>`` over moves g of the space, which for states in balanced bases is the same as minimising
``|A - g B|^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.assignment import best_order
from popmi_core.matching.elements import Move, read_axis
from popmi_core.matching.orders import best_field_order, best_grouped_order
from popmi_core.matching.procrustes import polar, stream_rotation
from popmi_core.matching.symmetry import Space, State, Symmetry

# What cancellation may take from inner products: duplicates must not look apart.
_SLACK = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Solved:
    """The best move of a space, and what it adds to the inner product of the two states (0: identity is best)."""

    move: Move
    gain: float
    identity: bool


def cross(reference: State, candidate: State, symmetry: Symmetry, name: str) -> Float[Tensor, "width width"]:
    """Return the sum over all counting axes of a space of ``a_i . b_j``."""
    space = symmetry.spaces[name]
    total = torch.zeros(())
    for axis in symmetry.of(name):
        if axis.counts:
            rows = read_axis(reference[axis.tensor], axis, space)
            found = rows @ read_axis(candidate[axis.tensor], axis, space).T
            total = found if total.ndim == 0 else total.add_(found)
    return total


def solve_order(space: Space, scores: Float[Tensor, "width width"]) -> Tensor:
    """Return the best order among those the space allows.

    Raises:
        UpdateError: If a score is NaN or infinite.
    """
    if space.kind == "grouped":
        return best_grouped_order(scores, space.size, space.inner)
    if space.kind == "fields":
        return best_field_order(scores, space.size, space.inner, space.shifts)
    return best_order(scores)


def is_identity(order: Tensor) -> bool:
    """Whether an order leaves everything in place."""
    return bool((order == torch.arange(len(order))).all())


class OrderBlock:
    """A permutation, grouped or fields space of one reference; neighbour distances are computed once."""

    def __init__(self, reference: State, symmetry: Symmetry, name: str) -> None:
        self.reference, self.symmetry, self.name = reference, symmetry, name
        self.space = symmetry.spaces[name]
        self.room = _room(cross(reference, reference, symmetry, name))

    def in_place(self, candidate: State) -> bool:
        """Return whether it is certain, without an assignment, that no order is better than the candidate's own."""
        return bool((self.distances(candidate).sqrt() <= self.room).all())

    def begin(self, candidate: State) -> Callable[[], Solved]:
        """Return what finds the best order; it keeps scores only, so that the candidate may change before it is called.

        Where the identity is certain to be best, there is no assignment.
        """
        if self.in_place(candidate):
            return lambda: Solved(Move(), 0.0, True)
        scores = cross(self.reference, candidate, self.symmetry, self.name)
        return lambda: self._best(scores)

    def _best(self, scores: Float[Tensor, "width width"]) -> Solved:
        order = solve_order(self.space, scores.double())
        if is_identity(order):
            return Solved(Move(), 0.0, True)
        gain = float(scores.gather(1, order[:, None]).sum() - scores.trace())
        return Solved(Move(order), gain, gain <= 0)

    def distances(self, candidate: State) -> Float[Tensor, " width"]:
        """Return every unit's squared distance to the candidate's unit in the same place."""
        total = torch.zeros(self.space.width(), dtype=torch.float64)
        for axis in self.symmetry.of(self.name):
            if axis.counts:
                own = read_axis(self.reference[axis.tensor], axis, self.space)
                total += (own - read_axis(candidate[axis.tensor], axis, self.space)).square().sum(dim=1)
        return total


class StreamBlock:
    """An orthogonal space of one reference."""

    def __init__(self, reference: State, symmetry: Symmetry, name: str) -> None:
        self.reference, self.symmetry, self.name = reference, symmetry, name
        axes = [axis for axis in symmetry.of(name) if axis.counts]
        self.numbers = sum(reference[axis.tensor].numel() for axis in axes)

    @property
    def turns(self) -> int:
        """Return the degrees of freedom of a rotation that keeps the vector of ones."""
        size = self.symmetry.spaces[self.name].size
        return (size - 1) * (size - 2) // 2

    def solve(self, candidate: State) -> Solved:
        """Return the best rotation."""
        scores = cross(self.reference, candidate, self.symmetry, self.name).double()
        found = stream_rotation(scores)
        gain = float((scores * found).sum() - scores.trace())
        return Solved(Move(rotation=found), gain, gain <= 0)


@dataclass(frozen=True)
class HeadRows:
    """All rows of every head, by part; ``order``: what only the order of heads moves (position tables)."""

    parts: dict[str, Float[Tensor, "heads inner width"]] = field(default_factory=dict)
    order: Float[Tensor, "heads width"] | None = None

    def energy(self) -> Float[Tensor, " heads"]:
        """Return every head's squared length."""
        total = sum((rows.square().sum((-2, -1)) for rows in self.parts.values()), torch.zeros(()))
        return total if self.order is None else total + self.order.square().sum(-1)


class HeadBlock:
    """The heads of one attention layer (or one low-rank adapter) of one reference."""

    def __init__(self, reference: State, symmetry: Symmetry, name: str) -> None:
        self.symmetry, self.name, self.space = symmetry, name, symmetry.spaces[name]
        self.own = head_rows(reference, symmetry, name)
        energy = self.own.energy()
        table = energy[:, None] + energy[None] - 2 * self._scores(self.own)
        # Distances between orbits: a metric too, so the certificate's triangle inequality holds for heads.
        self.room = _nearest(table, energy.max())

    def in_place(self, candidate: State) -> bool:
        """Return whether every head is certain to be in its place, and in much the same basis inside.

        The latter: nearer to the reference's head than half its length. In a basis drawn at random it would be 1.4
        times its length away.
        """
        rows, energy = head_rows(candidate, self.symmetry, self.name), self.own.energy()
        apart = sum(
            ((own - rows.parts[part]).square().sum((-2, -1)) for part, own in self.own.parts.items()), energy * 0
        )
        if self.own.order is not None and rows.order is not None:
            apart = apart + (self.own.order - rows.order).square().sum(-1)
        return bool((apart.sqrt() <= torch.minimum(self.room, energy.sqrt() / 2)).all())

    def solve(self, candidate: State) -> Solved:
        """Return the best order of heads and the best maps inside; no assignment where the order is certain."""
        rows = head_rows(candidate, self.symmetry, self.name)
        still = torch.arange(self.space.size)
        maps, overlap = self.align(rows, still)
        order = still
        distance = (self.own.energy() + rows.energy() - 2 * overlap).clamp_min(0).sqrt()
        if self.space.size > 1 and not bool((distance <= self.room).all()):
            order = best_order(self._scores(rows).double())
            if not is_identity(order):
                maps, overlap = self.align(rows, order)
        before = self._plain(rows)
        kept = is_identity(order)
        return Solved(Move(None if kept else order, maps=maps), float(overlap.sum() - before), kept)

    def align(self, rows: HeadRows, order: Tensor) -> tuple[dict[str, Tensor], Float[Tensor, " heads"]]:
        """Return the best orthogonal map of every paired head by free part, and the inner products reached."""
        maps: dict[str, Tensor] = {}
        overlap = torch.zeros(self.space.size, dtype=torch.float64)
        for part, mine in self.own.parts.items():
            scores = (mine @ rows.parts[part][order].mT).double()
            if self.space.maps[part] == "fixed":
                overlap += scores.diagonal(dim1=-2, dim2=-1).sum(-1)
                continue
            maps[part] = polar(scores)
            overlap += (maps[part] * scores).sum((-2, -1))
        if self.own.order is not None and rows.order is not None:
            overlap += (self.own.order * rows.order[order]).sum(-1)
        return maps, overlap

    def _plain(self, rows: HeadRows) -> float:
        total = sum(float((mine * rows.parts[part]).sum()) for part, mine in self.own.parts.items())
        return total + (float((self.own.order * rows.order).sum()) if self.own.order is not None else 0.0)  # type: ignore[operator]

    def _scores(self, rows: HeadRows) -> Float[Tensor, "heads heads"]:
        """Return the best inner product of every pair of heads over the maps inside: nuclear norms."""
        total = torch.zeros(self.space.size, self.space.size, dtype=torch.float64)
        for part, mine in self.own.parts.items():
            table = torch.einsum("ikw,jlw->ijkl", mine, rows.parts[part])
            if self.space.maps[part] == "fixed":
                total += table.diagonal(dim1=-2, dim2=-1).sum(-1)
            else:
                total += torch.linalg.svdvals(table).sum(-1)
        if self.own.order is not None and rows.order is not None:
            total += self.own.order @ rows.order.T
        return total


def head_rows(state: State, symmetry: Symmetry, name: str) -> HeadRows:
    """Return the rows of every head of a state in balanced bases."""
    space = symmetry.spaces[name]
    parts: dict[str, list[Tensor]] = {part: [] for part in space.maps}
    order: list[Tensor] = []
    for axis in symmetry.of(name):
        if axis.counts:
            rows = read_axis(state[axis.tensor], axis, space)
            if axis.part:
                parts[axis.part].append(rows.reshape(space.size, space.inner, -1))
            else:
                order.append(rows)
    joined = {part: torch.cat(rows, dim=-1) for part, rows in parts.items() if rows}
    return HeadRows(joined, torch.cat(order, dim=-1) if order else None)


def _room(gram: Float[Tensor, "units units"]) -> Float[Tensor, " units"]:
    """Return half of each unit's distance to its nearest other unit: how far it can move and still be itself.

    If ``|b_i - a_i| <= 1/2 min_j |a_i - a_j|`` for every unit, then by the triangle inequality ``|b_i - a_i| <= |b_i -
    a_j|`` for all j, so that the identity is a best permutation.
    """
    energy = gram.diagonal().clone()
    # In place: of wide layers the table is as large as the layer.
    return _nearest(gram.mul_(-2).add_(energy[:, None]).add_(energy[None]), energy.max())


def _nearest(table: Float[Tensor, "units units"], largest: Tensor) -> Float[Tensor, " units"]:
    if len(table) < 2:
        return torch.full((len(table),), torch.inf, dtype=torch.float64)
    table = table.sub_(_SLACK.get(table.dtype, 1e-5) * largest)
    return table.fill_diagonal_(torch.inf).min(dim=1).values.clamp_min(0).sqrt().double() / 2
