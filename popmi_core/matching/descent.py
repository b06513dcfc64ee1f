"""Block-exact coordinate descent: orders, heads and rotations by turns, until no block improves.

All states are in balanced bases. Every block is solved exactly with the others held, so the distance never rises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.blocks import HeadBlock, OrderBlock, Solved, StreamBlock
from popmi_core.matching.elements import Element, Move, act, act_in_place, compose, read_axis
from popmi_core.matching.procrustes import stream_rotation
from popmi_core.matching.symmetry import State, Symmetry

# A sweep that brings the models closer by less than this share of their size ends the descent.
_SETTLED = 1e-10
# In float32, as large models are matched, a sweep that takes off less than this share of the distance ends the descent:
# it takes seconds, and fused models are no better for it (docs/results/sweeps.md).
SETTLED_LARGE = 1e-3
TOO_LARGE = "Lower the learning rate where it was trained, or leave the model out."
# So many assignments run beside the descent: each takes one core, and one table of scores in memory.
_BESIDE = 2
# Unrelated models have one unit or so in place by chance, drifted ones nearly all: so many units tell them apart.
_TELLING = 32


@dataclass(frozen=True)
class Position:
    """Where the descent stands: the moves made, the candidate moved by them, the squared distance after every sweep.

    ``kin``: most hidden units were nearest to themselves before anything was moved, so that one model stems from the
    other or both from a third.
    """

    moves: Mapping[str, Move]
    state: State
    distances: tuple[float, ...]
    kin: bool = False

    @property
    def same_basis(self) -> bool:
        """No rotation, and every unit and head in its place."""
        return all(move.perm is None and move.rotation is None for move in self.moves.values())


class Target:
    """A balanced reference and what is computed once for all candidates; ``gauge``: the move that balanced it."""

    def __init__(self, reference: State, symmetry: Symmetry, gauge: Element | None = None) -> None:
        self.reference, self.symmetry, self.gauge = reference, symmetry, gauge or Element()
        self.names = sorted({axis.tensor for axis in symmetry.axes if axis.counts})
        self.dtype = torch.float64 if any(reference[n].dtype is torch.float64 for n in self.names) else torch.float32
        self.energy = sum(float(reference[name].square().sum()) for name in self.names)
        self.blocks = {name: _block(reference, symmetry, name) for name in symmetry.spaces}
        self._tensors = {name: [axis.tensor for axis in symmetry.of(name)] for name in symmetry.spaces}

    def certified(self, candidate: State) -> bool:
        """Return whether a canonical candidate is as good as in the reference's basis: one look at every weight.

        Certain: no unit or head can be better placed. Near: maps inside heads, scales of units, and streams, in whose
        basis the units' weights are: turned by more than 20 to 30 degrees they would not be near themselves. What is
        near is left; an exact match by so small a turn is not looked for. Without enough units to tell the answer is
        no. Memory: one layer.
        """
        orders = {name: block for name, block in self.blocks.items() if isinstance(block, OrderBlock)}
        heads = {name: block for name, block in self.blocks.items() if isinstance(block, HeadBlock)}
        return (
            sum(block.space.width() for block in orders.values()) >= _TELLING
            and all(block.in_place(self.gauged(candidate, self._tensors[name])) for name, block in orders.items())
            and all(block.in_place(self.gauged(candidate, self._tensors[name])) for name, block in heads.items())
        )

    def gauged(self, candidate: State, names: Collection[str]) -> dict[str, Tensor]:
        """Return these tensors of a canonical candidate, moved as the reference was moved to balance it."""
        axes = tuple(axis for axis in self.symmetry.axes if axis.tensor in names)
        return act({name: candidate[name] for name in names}, replace(self.symmetry, axes=axes), self.gauge)

    def gauged_distance(self, candidate: State) -> float:
        """Return the squared distance of a canonical candidate in the reference's own bases, tensor by tensor."""
        return sum(
            float((self.reference[name] - self.gauged(candidate, [name])[name]).square().sum()) for name in self.names
        )

    def settled(self, before: float, after: float) -> bool:
        """Return whether a sweep brought a candidate, by squared distances, so little closer that it is the last."""
        if self.dtype is torch.float32:
            return before - after <= SETTLED_LARGE * before
        return before - after <= _SETTLED * self.energy

    def near(self, name: str) -> set[str]:
        """Return the spaces whose best move may be another once this one has moved: those that share a tensor."""
        mine = self._tensors[name]
        near = {
            other for other, tensors in self._tensors.items() if other != name and not set(mine).isdisjoint(tensors)
        }
        # A layer from a space into itself changes on both sides: one order does not settle it.
        return near | {name} if len(set(mine)) < len(mine) else near

    @property
    def streams(self) -> list[str]:
        """Return the orthogonal spaces."""
        return [name for name, space in self.symmetry.spaces.items() if space.kind == "orthogonal"]

    def distance(self, candidate: State) -> float:
        """Return the squared distance over everything that counts."""
        return sum(float((self.reference[name] - candidate[name]).square().sum()) for name in self.names)


def descend(
    target: Target,
    candidate: State,
    *,
    start: Element | None = None,
    sweeps: int,
    generator: torch.Generator | None = None,
    held: Collection[str] = (),
) -> Position:
    """Return the best position reachable from ``start`` (None: the identity, kept unless leaving it clearly pays).

    Spaces are solved in the description's order, streams last; with a generator in random order. Those that are
    ``held`` stay where the start puts them. From the identity, streams of ``kin`` are turned only if that takes off
    half the distance: what training has turned is drift, and to turn every site back by itself makes their average
    worse (docs/opm.md).
    """
    # A caller that keeps none either has but one model in memory: moved tensors take the place of these.
    here = dict(candidate)
    del candidate
    if start:
        act_in_place(here, target.symmetry, start)
    distances: list[float] = []
    kin = False
    with ThreadPoolExecutor(_BESIDE) as threads:
        walk = _Walk(target, here, threads, dict(start.moves) if start else {})
        for sweep in range(max(1, sweeps)):
            before = dict(walk.moves)
            for name in _sequence(target, generator):
                walk.wait_beside(name)
                if name in held or name in walk.done:
                    continue
                if not sweep and name in target.streams and not start:
                    kin = _mostly_in_place(target, walk.moves)
                walk.solve(name, moved=bool(start) or name in walk.moves, kin=kin)
            walk.wait(list(walk.pending))
            if not sweep and not target.streams and not start:
                kin = _mostly_in_place(target, walk.moves)
            distances.append(target.distance(here))
            stands = _orders(before) == _orders(walk.moves) and not any(name in walk.moves for name in target.streams)
            if target.settled(*distances[-2:]) if sweep else stands:
                break
    return Position(walk.moves, here, tuple(distances), kin)


@dataclass
class _Walk:
    """One descent under way: the candidate as it is moved, and the orders that threads are finding meanwhile.

    An assignment is the one long step that leaves a core idle. The walk therefore goes on with spaces that share no
    tensor with it; whatever shares one waits, so that the moves are those of one space after the other.
    """

    target: Target
    state: dict[str, Tensor]
    threads: ThreadPoolExecutor
    moves: dict[str, Move]
    # Orders that are the best and stay so: nothing beside them has moved since they were assigned.
    done: set[str] = field(default_factory=set)
    pending: dict[str, Future[Solved]] = field(default_factory=dict)

    def solve(self, name: str, *, moved: bool, kin: bool) -> None:
        """Move one space to its best, or have its order found; a first rotation has to pay clearly."""
        block = self.target.blocks[name]
        if isinstance(block, OrderBlock):
            self.wait(list(self.pending)[: 1 - _BESIDE])
            self.pending[name] = self.threads.submit(block.begin(self.state))
            return
        with _naming(name):
            move: Move | None
            if isinstance(block, HeadBlock):
                move = block.solve(self.state).move
                move = move if move.perm is not None or move.maps else None
            else:
                move = _worth_rotating(self.target, block, self.state, moved=moved, kin=kin)
        self._make(name, move)

    def wait_beside(self, name: str) -> None:
        """Make the moves that are still being found for spaces that share a tensor with this one; all for a stream."""
        near = self.target.near(name)
        self.wait([other for other in self.pending if other in near or name in self.target.streams])

    def wait(self, names: Collection[str]) -> None:
        """Make the moves of these pending spaces."""
        for name in names:
            with _naming(name):
                move = self.pending.pop(name).result().move
            self.done.add(name)
            self._make(name, move if move.perm is not None and self._closer(name, move) else None)

    def _closer(self, name: str, move: Move) -> bool:
        """Return whether an order brings the candidate closer: it may not where a layer leads from a space into itself.

        There the assignment sees one side of the layer at a time, and both change.
        """
        if name not in self.target.near(name):
            return True
        mine = replace(self.target.symmetry, axes=self.target.symmetry.of(name))
        here = {axis.tensor: self.state[axis.tensor] for axis in mine.axes}
        moved = act(here, mine, Element({name: move}))
        counted = {axis.tensor for axis in mine.axes if axis.counts}
        before, after = (
            sum(float((self.target.reference[n] - state[n]).square().sum()) for n in counted) for state in (here, moved)
        )
        return after < before

    def _make(self, name: str, move: Move | None) -> None:
        if move is not None:
            self.done -= self.target.near(name)
            act_in_place(self.state, self.target.symmetry, Element({name: move}))
            self.moves[name] = compose(self.moves[name], move) if name in self.moves else move


@contextmanager
def _naming(space: str) -> Iterator[None]:
    """Have what fails inside say in which space: weights that are finite, but so large that scores are not."""
    try:
        yield
    except (UpdateError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise UpdateError(
            f"its weights around '{space}' are finite but overflow when they are compared, expected weights of the "
            f"reference's size. {TOO_LARGE}"
        ) from error


def _mostly_in_place(target: Target, moves: Mapping[str, Move]) -> bool:
    """Return whether more than half of all units with an order of their own stay in it."""
    units = kept = 0
    for name, block in target.blocks.items():
        if isinstance(block, OrderBlock):
            width = target.symmetry.spaces[name].width()
            order = moves[name].perm if name in moves else None
            units += width
            kept += width if order is None else int((order == torch.arange(width)).long().sum())
    return units >= _TELLING and 2 * kept > units


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


def embedding_start(target: Target, candidate: State) -> Element:
    """Return the rotations that fit what only the stream moves: embeddings, head and biases that write it.

    A stream with fewer such numbers than channels stays: its rotation would be arbitrary.
    """
    symmetry = target.symmetry
    others: dict[str, int] = {}
    for axis in symmetry.axes:
        others[axis.tensor] = others.get(axis.tensor, 0) + 1
    moves = {}
    for name in target.streams:
        alone = [axis for axis in symmetry.of(name) if axis.counts and others[axis.tensor] == 1]
        space = symmetry.spaces[name]
        pairs = [
            (read_axis(target.reference[axis.tensor], axis, space), read_axis(candidate[axis.tensor], axis, space))
            for axis in alone
        ]
        if sum(own.shape[1] for own, _ in pairs) >= space.size:
            total = sum(((own @ other.T).double() for own, other in pairs), torch.zeros(()))
            moves[name] = Move(rotation=stream_rotation(total))
    return Element(moves)


def _block(reference: State, symmetry: Symmetry, name: str) -> HeadBlock | OrderBlock | StreamBlock:
    kind = symmetry.spaces[name].kind
    if kind == "heads":
        return HeadBlock(reference, symmetry, name)
    return StreamBlock(reference, symmetry, name) if kind == "orthogonal" else OrderBlock(reference, symmetry, name)


def _worth_rotating(target: Target, block: StreamBlock, here: State, *, moved: bool, kin: bool) -> Move | None:
    """Return the stream's best rotation, or None where staying is as good; a first one has to pay clearly."""
    solved = block.solve(here)
    if solved.identity:
        return None
    if not moved:
        before = torch.tensor(target.distance(here), dtype=torch.float64)
        after = before - 2 * solved.gain
        turns, numbers, energy = block.turns, block.numbers, target.energy
        if not bool(worth_turning(before, after, turns=turns, numbers=numbers, energy=energy, kin=kin)):
            return None
    return solved.move


def _sequence(target: Target, generator: torch.Generator | None) -> list[str]:
    names = [name for name in target.blocks if name not in target.streams]
    if generator is not None:
        names = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
    return names + target.streams


def _orders(moves: Mapping[str, Move]) -> dict[str, list[int]]:
    return {name: move.perm.tolist() for name, move in moves.items() if move.perm is not None}
