"""A group element with knobs: what a gradient may turn in every space, and the exact move the knobs stand for."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.matching.blocks import cross, solve_order
from popmi_core.matching.elements import Element, Move, act, compose
from popmi_core.matching.symmetry import Space, State, Symmetry

Orders = Literal["straight-through", "sinkhorn", "kept"]
# Scores are cosines. Their softness falls from the first to the last: rounding at the end then changes little.
_WARM, _COLD = 0.1, 0.02
_SINKHORN_ROUNDS = 20
# Cosines of dead units are 0, not NaN.
_TINY = 1e-12


class Knob(Protocol):
    """The free parameters of one space."""

    def parameters(self) -> list[Tensor]:
        """Return the leaves a gradient may change."""

    def move(self, done: float) -> Move:
        """Return a differentiable move in float32; ``done``: the share of the training behind us, 0 to 1."""

    def settled(self) -> Move:
        """Return the exact group element the knob stands for, in float64."""


class Freedom:
    """Knobs for every space of a symmetry around a start."""

    def __init__(
        self, symmetry: Symmetry, reference: State, candidate: State, *, start: Element, orders: Orders | None
    ) -> None:
        self.start = start
        if orders is None:
            # Next to rotations learned orders gain next to nothing at three times the cost; alone they are all one has.
            turns = any(space.kind in ("orthogonal", "heads") for space in symmetry.spaces.values())
            orders = "kept" if turns else "sinkhorn"
        moved = act(candidate, symmetry, start)
        self.knobs: dict[str, Knob] = {}
        for name, space in symmetry.spaces.items():
            begun = start.moves.get(name, Move())
            if space.kind == "orthogonal":
                self.knobs[name] = StreamKnob(space, begun)
            elif space.kind == "heads":
                self.knobs[name] = HeadKnob(space, begun)
            elif orders != "kept":
                self.knobs[name] = OrderKnob(cosines(reference, moved, symmetry, name), begun, space, orders)

    def parameters(self) -> list[Tensor]:
        """Return all leaves."""
        return [leaf for knob in self.knobs.values() for leaf in knob.parameters()]

    def element(self, done: float) -> Element:
        """Return the differentiable element."""
        return Element({**self.start.moves, **{name: knob.move(done) for name, knob in self.knobs.items()}})

    def settled(self) -> Element:
        """Return the exact element; every move keeps the model's function to rounding."""
        with torch.no_grad():
            return Element({**self.start.moves, **{name: knob.settled() for name, knob in self.knobs.items()}})


class StreamKnob:
    """A rotation with ``R 1 = 1`` after the start's: Cayley's map of a skew matrix on the complement of the ones."""

    def __init__(self, space: Space, begun: Move) -> None:
        self.begun, self.basis = begun, complement(space.size)
        self.free = torch.zeros(space.size - 1, space.size - 1).requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.free]

    def move(self, done: float) -> Move:
        del done
        return self._move(self.free)

    def settled(self) -> Move:
        return self._move(self.free.detach().double())

    def _move(self, free: Tensor) -> Move:
        basis = self.basis.to(free.dtype)
        turn = basis @ cayley(free) @ basis.T + 1 / len(basis)
        begun = self.begun.rotation
        return Move(rotation=turn if begun is None else turn @ begun.to(free.dtype))


class HeadKnob:
    """A map inside every head after the start's: exponentials of free (linear) or skew (orthogonal) matrices.

    The order of heads is the start's.
    """

    def __init__(self, space: Space, begun: Move) -> None:
        self.space, self.begun = space, begun
        size = (space.size, space.inner, space.inner)
        self.logs = {part: torch.zeros(size).requires_grad_() for part, kind in space.maps.items() if kind != "fixed"}

    def parameters(self) -> list[Tensor]:
        return list(self.logs.values())

    def move(self, done: float) -> Move:
        del done
        return self._move(self.logs)

    def settled(self) -> Move:
        return self._move({part: log.detach().double() for part, log in self.logs.items()})

    def _move(self, logs: dict[str, Tensor]) -> Move:
        maps = {}
        for part, log in logs.items():
            change = torch.linalg.matrix_exp(log if self.space.maps[part] == "linear" else log - log.mT)
            begun = self.begun.maps.get(part)
            maps[part] = change if begun is None else change @ begun.to(log.dtype)
        return Move(self.begun.perm, maps=maps)


class OrderKnob:
    """Scores of every pair of units, at first their cosines; scales of units too where those are free.

    ``sinkhorn``: the forward pass mixes units by a doubly stochastic matrix that grows colder. ``straight-through``:
    the forward pass takes the best assignment itself, and only the gradient sees the matrix. Groups and fields are
    always learned so: a mixture of their orders would be wider than what they allow.
    """

    def __init__(self, scores: Float[Tensor, "n n"], begun: Move, space: Space, orders: Orders) -> None:
        self.begun, self.space = begun, space
        self.hard = orders == "straight-through" or space.kind != "permutation"
        self.scores = scores.float().clone().requires_grad_()
        self.stretch = torch.zeros(len(scores)).requires_grad_() if space.rescalable else None

    def parameters(self) -> list[Tensor]:
        return [self.scores] if self.stretch is None else [self.scores, self.stretch]

    def move(self, done: float) -> Move:
        mixed = sinkhorn(self.scores / (_WARM * (_COLD / _WARM) ** done))
        if self.hard:
            hard = torch.eye(len(mixed))[self._order()]
            mixed = hard + mixed - mixed.detach()
        scale = None if self.stretch is None else self.stretch.exp()
        if self.begun.scale is not None:
            # For a permutation matrix this is the start's scales in the new order.
            carried = mixed @ self.begun.scale.float()
            scale = carried if scale is None else scale * carried
        return Move(self.begun.perm, rotation=mixed, scale=scale)

    def settled(self) -> Move:
        scale = None if self.stretch is None else self.stretch.detach().double().exp()
        return compose(self.begun, Move(self._order(), scale=scale))

    def _order(self) -> Int[Tensor, " n"]:
        return solve_order(self.space, self.scores.detach().double())


def complement(dim: int) -> Float[Tensor, "dim less"]:
    """Return an orthonormal basis of all that is perpendicular to the vector of ones (Helmert's), in float64."""
    upper = torch.triu(torch.ones(dim, dim - 1, dtype=torch.float64))
    index = torch.arange(1, dim, dtype=torch.float64)
    upper[1:].diagonal().copy_(-index)
    return upper / (index * (index + 1)).sqrt()


def cayley(free: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the rotation ``(I + A)^-1 (I - A)`` of the skew part ``A = free - free^T``."""
    skew = free - free.mT
    identity = torch.eye(len(free), dtype=free.dtype)
    return torch.linalg.solve(identity + skew, identity - skew)


def sinkhorn(logits: Float[Tensor, "n n"], rounds: int = _SINKHORN_ROUNDS) -> Float[Tensor, "n n"]:
    """Return a doubly stochastic matrix near ``exp(logits)`` (Sinkhorn and Knopp 1967), in the log domain."""
    for _ in range(rounds):
        logits = logits - logits.logsumexp(1, keepdim=True)
        logits = logits - logits.logsumexp(0, keepdim=True)
    return logits.exp()


def cosines(reference: State, candidate: State, symmetry: Symmetry, name: str) -> Float[Tensor, "n n"]:
    """Return the cosine of every unit of the reference with every unit of the candidate, over all their weights."""
    table = cross(reference, candidate, symmetry, name)
    own, other = (cross(state, state, symmetry, name).diagonal().sqrt() for state in (reference, candidate))
    return table / torch.outer(own, other).clamp_min(_TINY)
