"""A start for nets of layers: units are put in order front to back, each by what is in order already.

From the identity, the first visit to a layer would compare it by its readers too, whose own units are still in any
order: noise that can drown what the layer before says. Here a tensor speaks only once all its other spaces are in
order, so that a moved copy is found exactly; the descent that begins here adds what the readers say.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.blocks import is_identity, solve_order
from popmi_core.matching.descent import Target
from popmi_core.matching.elements import Element, Move, act, read_axis
from popmi_core.matching.symmetry import Axis, State, Symmetry

_ORDERED = ("permutation", "grouped", "fields")


def forward_start(target: Target, candidate: State) -> Element:
    """Return an order for every space of units, in the order in which the description names the spaces.

    Args:
        target: The balanced reference.
        candidate: A balanced candidate.

    Raises:
        UpdateError: If a score is NaN or infinite.
    """
    symmetry = target.symmetry
    # Rotations and heads stay as they are: what they touch counts as it lies.
    known = {name for name, space in symmetry.spaces.items() if space.kind not in _ORDERED}
    moves: dict[str, Move] = {}
    here = dict(candidate)
    for name, space in symmetry.spaces.items():
        if space.kind not in _ORDERED:
            continue
        scores = _scores(target.reference, here, symmetry, name, _speaking(symmetry, name, known))
        known.add(name)
        order = solve_order(space, scores.double())
        if not is_identity(order):
            moves[name] = Move(order)
            here = act(here, symmetry, Element({name: moves[name]}))
    return Element(moves)


def _speaking(symmetry: Symmetry, name: str, known: set[str]) -> list[Axis]:
    """Return the axes of a space whose tensors lie in order but for this space; all of them where there is none."""
    others: dict[str, set[str]] = {}
    for axis in symmetry.axes:
        others.setdefault(axis.tensor, set()).add(axis.space)
    counting = [axis for axis in symmetry.of(name) if axis.counts]
    ready = [axis for axis in counting if others[axis.tensor] - {name} <= known]
    return ready or counting


def _scores(
    reference: State, candidate: State, symmetry: Symmetry, name: str, axes: list[Axis]
) -> Float[Tensor, "width width"]:
    space = symmetry.spaces[name]
    width = space.width()
    total = torch.zeros(width, width, dtype=reference[axes[0].tensor].dtype)
    for axis in axes:
        rows = read_axis(reference[axis.tensor], axis, space)
        total = total + rows @ read_axis(candidate[axis.tensor], axis, space).T
    return total
