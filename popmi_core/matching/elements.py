"""Elements of a symmetry group: draw one at random, compose two, apply one to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.matching.canonical import canonicalise, touched, unfold, widen
from popmi_core.matching.symmetry import Axis, Space, State, Symmetry


@dataclass(frozen=True)
class Move:
    """What happens to one space; what is None stays as it is, bit for bit.

    Attributes:
        perm: New entry i is old entry ``perm[i]`` (entries are heads in a ``heads`` space, channels elsewhere).
        rotation: ``x -> R x`` after the permutation; any square matrix works, so that soft permutations do too.
        maps: By part of a ``heads`` space: ``x -> M_h x`` inside new head h; dual axes by the inverse transpose.
        scale: New unit i times ``scale[i]``; dual axes are divided by it.
    """

    perm: Int[Tensor, " entries"] | None = None
    rotation: Float[Tensor, "channels channels"] | None = None
    maps: Mapping[str, Float[Tensor, "heads inner inner"]] = field(default_factory=dict)
    scale: Float[Tensor, " units"] | None = None

    @property
    def turns(self) -> bool:
        """Whether a stream is rotated, for which norms have to be folded away first."""
        return self.rotation is not None


@dataclass(frozen=True)
class Element:
    """One group element: a move for every space that moves."""

    moves: Mapping[str, Move] = field(default_factory=dict)


def apply(
    state: State,
    symmetry: Symmetry,
    element: Element,
    *,
    like: State | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Return the moved model: another spelling of the same function, in the number formats it came in.

    A rotation of a stream needs the folded spelling (see canonical.py); ``like`` says whose gamma, beta and
    LayerScale the result gets back then (by default: none, they stay folded). What no axis touches is the tensor that
    came in, not a copy. ``dtype`` is what is computed in: for a model in float32, float64 takes the memory of two
    further models while it runs, float32 of one.
    """
    turned = any(move.turns for move in element.moves.values())
    wide = canonicalise(state, symmetry, dtype) if turned else widen(state, touched(state, symmetry), dtype)
    act_in_place(wide, symmetry, element)
    if turned and like is not None:
        unfold(wide, like, symmetry)
    # Moves along later axes leave strides that files of weights refuse.
    return {name: wide.pop(name).to(tensor.dtype).contiguous() for name, tensor in state.items()}


def act(state: State, symmetry: Symmetry, element: Element) -> dict[str, Tensor]:
    """Return the state with every axis of every moved space changed; differentiable, nothing is folded."""
    result = dict(state)
    act_in_place(result, symmetry, element)
    return result


def act_in_place(state: dict[str, Tensor], symmetry: Symmetry, element: Element) -> None:
    """Put moved tensors in place of those of the state, so that a whole model is never held twice."""
    for axis in symmetry.axes:
        move = element.moves.get(axis.space)
        if move is not None:
            state[axis.tensor] = _act_on_axis(state[axis.tensor], axis, symmetry.spaces[axis.space], move)


def read_axis(tensor: Tensor, axis: Axis, space: Space) -> Float[Tensor, "width rest"]:
    """Return what a tensor holds along one axis of a space: a row for every entry."""
    lead = tensor.movedim(axis.axis, 0)[axis.start : axis.stop]
    parts = lead.reshape(axis.repeat, space.width(axis.part), axis.spread, -1)
    return parts.movedim(1, 0).reshape(space.width(axis.part), -1)


def write_axis(tensor: Tensor, axis: Axis, space: Space, rows: Float[Tensor, "width rest"]) -> Tensor:
    """Return the tensor with these rows along the axis; the inverse of ``read_axis``."""
    lead = tensor.movedim(axis.axis, 0)
    old = lead[axis.start : axis.stop]
    parts = rows.reshape(space.width(axis.part), axis.repeat, axis.spread, -1).movedim(1, 0)
    new = parts.reshape(old.shape)
    if len(old) != len(lead):
        stop = len(lead) if axis.stop is None else axis.stop
        new = torch.cat([lead[: axis.start], new, lead[stop:]])
    return new.movedim(0, axis.axis)


def _act_on_axis(tensor: Tensor, axis: Axis, space: Space, move: Move) -> Tensor:
    rows = read_axis(tensor, axis, space)
    if space.kind == "heads" and axis.part:
        split = rows.reshape(space.size, space.inner, -1)
        split = split if move.perm is None else split[move.perm]
        change = move.maps.get(axis.part)
        if change is not None:
            change = change.to(rows.dtype)
            split = (torch.linalg.inv(change).mT if axis.dual else change) @ split
        return write_axis(tensor, axis, space, split.reshape(rows.shape))
    if move.perm is not None:
        rows = rows[move.perm]
    if move.rotation is not None:
        rows = move.rotation.to(rows.dtype) @ rows
    if move.scale is not None and axis.scales:
        factor = (1 / move.scale if axis.dual else move.scale).to(rows.dtype)
        rows = rows * factor[:, None]
    return write_axis(tensor, axis, space, rows)


def compose(first: Move, then: Move) -> Move:
    """Return the one move that does ``first`` and then ``then`` (not both with a permutation and a rotation)."""
    perm = first.perm if then.perm is None else (then.perm if first.perm is None else first.perm[then.perm])
    maps = dict(then.maps)
    for part, change in first.maps.items():
        moved = change if then.perm is None else change[then.perm]
        maps[part] = maps[part] @ moved if part in maps else moved
    rotation = first.rotation if then.rotation is None else then.rotation
    if first.rotation is not None and then.rotation is not None:
        rotation = then.rotation @ first.rotation
    scale = first.scale if first.scale is None or then.perm is None else first.scale[then.perm]
    if then.scale is not None:
        scale = then.scale if scale is None else then.scale * scale
    return Move(perm, rotation, maps, scale)


def random_element(symmetry: Symmetry, generator: torch.Generator) -> Element:
    """Draw an element: rotations with ``R 1 = 1``, orders, group shifts, head bases and scales (at most 4 to 1).

    An order is never the identity where there is another, so that a test by one element sees every space move.
    """
    return Element({name: random_move(space, generator) for name, space in symmetry.spaces.items()})


def random_move(space: Space, generator: torch.Generator) -> Move:
    """Draw a move of one space."""
    if space.kind == "orthogonal":
        return Move(rotation=random_rotation(space.size, generator))
    perm = _random_order(space.size, generator)
    if space.kind == "heads":
        size = (space.size, space.inner)
        maps = {part: _random_map(kind, size, generator) for part, kind in space.maps.items() if kind != "fixed"}
        return Move(perm, maps=maps)
    if space.kind == "grouped":
        inside = torch.stack([torch.randperm(space.inner, generator=generator) for _ in range(space.size)])
        return Move((perm[:, None] * space.inner + inside).flatten())
    if space.kind == "fields":
        drawn = torch.randint(len(space.shifts), (space.size,), generator=generator)
        return Move((perm[:, None] * space.inner + torch.tensor(space.shifts)[drawn]).flatten())
    return Move(perm, scale=_random_stretch((space.size,), generator) if space.rescalable else None)


def random_rotation(dim: int, generator: torch.Generator) -> Float[Tensor, "dim dim"]:
    """Draw an orthogonal matrix with ``R 1 = 1`` (a reflection half of the time)."""
    ones = torch.ones(dim, 1, dtype=torch.float64)
    # Gram-Schmidt from the vector of ones: the other columns span what LayerNorm leaves to rotate.
    basis = torch.linalg.qr(torch.cat([ones, _normal((dim, dim - 1), generator)], dim=1)).Q[:, 1:]
    turn = torch.linalg.qr(_normal((dim - 1, dim - 1), generator)).Q
    return ones @ ones.T / dim + basis @ turn @ basis.T


def _random_order(size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    order = torch.randperm(size, generator=generator)
    while size > 1 and bool((order == torch.arange(size)).all()):
        order = torch.randperm(size, generator=generator)
    return order


def _random_map(kind: str, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    square = (*size, size[1])
    left, right = torch.linalg.qr(_normal(square, generator)).Q, torch.linalg.qr(_normal(square, generator)).Q
    return left @ right if kind == "orthogonal" else left * _random_stretch(size, generator)[:, None, :] @ right


def _random_stretch(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 ** (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)


def _normal(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)
