"""The factors of a head (or of a low-rank adapter) and the basis in which both are of one size.

What a head computes is a product, ``left^T right``; the factors are only defined up to an invertible matrix. In the
balanced basis both have the same Gram matrix, and what remains free is a rotation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.elements import Element, Move, act, compose, read_axis, write_axis
from popmi_core.matching.symmetry import Axis, Space, State, Symmetry

# Keeps a basis change finite where a head has lost a direction; far below what float32 weights resolve.
_RIDGE = 1e-12
# Scales of neighbouring layers are balanced by turns: 20 or so where they share tensors, two where they do not.
_TURNS = 200
_BALANCED = 1e-13


def factors(
    state: State, symmetry: Symmetry, space: str, part: str
) -> tuple[Float[Tensor, "heads inner m"], Float[Tensor, "heads inner n"]]:
    """Return both factors of every head of a space: rows of all plain axes of the part, and of all dual ones."""
    left, right = _sides(symmetry, space, part)
    known = symmetry.spaces[space]
    return _rows(state, left, known), _rows(state, right, known)


def put_factors(
    state: State,
    symmetry: Symmetry,
    space: str,
    part: str,
    left: Float[Tensor, "heads inner m"],
    right: Float[Tensor, "heads inner n"],
) -> dict[str, Tensor]:
    """Return the state with these factors; the inverse of ``factors``."""
    result, known = dict(state), symmetry.spaces[space]
    for axes, rows in zip(_sides(symmetry, space, part), (left, right), strict=True):
        begun = 0
        for axis in axes:
            width = read_axis(result[axis.tensor], axis, known).shape[1]
            mine = rows[..., begun : begun + width].reshape(known.width(part), width)
            result[axis.tensor] = write_axis(result[axis.tensor], axis, known, mine)
            begun += width
    return result


def gauge_of(state: State, symmetry: Symmetry) -> Element:
    """Return the element that balances a canonical state: bases of linear heads, scales of rescalable units."""
    linear = [name for name, space in symmetry.spaces.items() if "linear" in space.maps.values()]
    moves = {name: _balance(state, symmetry, name) for name in linear}
    return Element(moves | _balanced_together(state, symmetry, linear) | _balanced_scales(state, symmetry))


def _balance(state: State, symmetry: Symmetry, name: str) -> Move:
    linear = [part for part, kind in symmetry.spaces[name].maps.items() if kind == "linear"]
    return Move(maps={part: balancer(*factors(state, symmetry, name, part)) for part in linear})


def _balanced_together(state: State, symmetry: Symmetry, linear: list[str]) -> dict[str, Move]:
    """Return the balancing moves of linear spaces that share a tensor (heads, and an adapter on their layer), by turns.

    Each turn makes the weights shorter, and the shortest are unique up to rotations (Kempf & Ness 1979): only then do
    two spellings of one model end in bases that are rotations of each other.
    """
    tensors = {name: {axis.tensor for axis in symmetry.of(name)} for name in linear}
    coupled = [name for name in linear if any(tensors[name] & tensors[other] for other in linear if other != name)]
    parts = {name: replace(symmetry, axes=symmetry.of(name)) for name in coupled}
    here: State = {tensor: state[tensor].double() for name in coupled for tensor in tensors[name]}
    moves: dict[str, Move] = {}
    for _ in range(_TURNS):
        changed = 0.0
        for name in coupled:
            turn = _balance(here, symmetry, name)
            here = act(here, parts[name], Element({name: turn}))
            moves[name] = compose(moves[name], turn) if name in moves else turn
            changed = max(changed, *(_stretched(change) for change in turn.maps.values()))
        if changed < _BALANCED:
            break
    return moves


def _stretched(change: Float[Tensor, "heads inner inner"]) -> float:
    """Return by how much maps are not rotations."""
    return float((change.mT @ change - torch.eye(change.shape[-1], dtype=change.dtype)).abs().max())


def balancer(left: Float[Tensor, "h k m"], right: Float[Tensor, "h k n"]) -> Float[Tensor, "h k k"]:
    """Return T with ``Gram(T left) = Gram(T^-T right)``, in float64.

    With the Gram matrices ``G = L L^T`` and H, and ``L^T H L = V D V^T``: ``T = D^1/4 V^T L^-1`` makes both ``D^1/2``.
    """
    lower = torch.linalg.cholesky(_gram(left))
    values, vectors = torch.linalg.eigh(lower.mT @ _gram(right) @ lower)
    values = values.clamp_min(values.amax(-1, keepdim=True) * _RIDGE)
    # T^T = L^-T V D^1/4
    turned = torch.linalg.solve_triangular(lower.mT, vectors * values[..., None, :] ** 0.25, upper=True)
    return turned.mT


def _sides(symmetry: Symmetry, space: str, part: str) -> tuple[list[Axis], list[Axis]]:
    axes = [axis for axis in symmetry.of(space) if axis.part == part]
    return [axis for axis in axes if not axis.dual], [axis for axis in axes if axis.dual]


def _rows(state: State, axes: list[Axis], space: Space) -> Tensor:
    rows = [read_axis(state[axis.tensor], axis, space).reshape(space.size, space.inner, -1) for axis in axes]
    return torch.cat(rows, dim=-1)


def _balanced_scales(state: State, symmetry: Symmetry) -> dict[str, Move]:
    """Return the scales of all rescalable spaces together: neighbours share tensors, so they are balanced by turns.

    Every turn makes the weights shorter, and the shortest weights are unique (Stock et al. 2019, arXiv:1902.10416).
    """
    names = [name for name, space in symmetry.spaces.items() if space.rescalable]
    scales = {name: torch.ones(symmetry.spaces[name].size, dtype=torch.float64) for name in names}
    parts = {name: replace(symmetry, axes=symmetry.of(name)) for name in names}
    touched = {axis.tensor for part in parts.values() for axis in part.axes}
    here: State = {name: tensor.double() for name, tensor in state.items() if name in touched}
    for _ in range(_TURNS):
        changed = 0.0
        for name in names:
            change = _scales(here, symmetry, name)
            scales[name] = scales[name] * change
            here = act(here, parts[name], Element({name: Move(scale=change)}))
            changed = max(changed, float(change.log().abs().max()))
        if changed < _BALANCED:
            break
    return {name: Move(scale=scale) for name, scale in scales.items()}


def _scales(state: State, symmetry: Symmetry, name: str) -> Float[Tensor, " units"]:
    """Return c so that ``c writers`` and ``readers / c`` have the same length for every unit."""
    space = symmetry.spaces[name]
    squared = {False: torch.zeros(space.size, dtype=torch.float64), True: torch.zeros(space.size, dtype=torch.float64)}
    for axis in symmetry.of(name):
        if axis.counts and axis.scales:
            squared[axis.dual] += read_axis(state[axis.tensor], axis, space).double().square().sum(dim=1)
    # A dead unit has no scale.
    alive = (squared[False] > 0) & (squared[True] > 0)
    return torch.where(alive, (squared[True] / squared[False]) ** 0.25, torch.ones(space.size, dtype=torch.float64))


def _gram(rows: Tensor) -> Tensor:
    wide = rows.double()
    gram = wide @ wide.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    # A head of zeros (fresh projection) gets the identity: there is nothing to balance against.
    return torch.where(trace > 0, gram + _RIDGE * trace * identity, identity)
