"""How group elements act on images, token grids and regular channels: moves of values, never interpolation."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from popmi_core.groups.point_group import Element, PointGroup


def act(element: Element, images: Tensor, dims: tuple[int, int] = (-2, -1)) -> Tensor:
    """Return ``images`` with ``element`` applied to the (row, column) axes ``dims``; exact."""
    mirrored = images.flip(dims[1]) if element.flip else images
    return torch.rot90(mirrored, element.turns, dims) if element.turns else mirrored


def grid_permutation(element: Element, side: int) -> Int[Tensor, " cells"]:
    """Return perm such that ``tokens[perm]`` is the row-major grid of ``tokens`` after ``element``."""
    return act(element, torch.arange(side * side).view(side, side)).reshape(-1)


def grid_orbits(group: PointGroup, side: int) -> Int[Tensor, "side side"]:
    """Number the orbits of the cells of a ``side`` x ``side`` grid 0, 1, ... in order of first appearance.

    The functions constant on these orbits are exactly the invariant ones, so the number of orbits is the
    dimension of the invariant subspace.
    """
    cells = torch.arange(side * side).view(side, side)
    first = torch.stack([act(element, cells) for element in group.elements]).amin(dim=0)
    orbits: Tensor = torch.unique(first, return_inverse=True)[1]
    return orbits


def channel_permutation(group: PointGroup, element: Element) -> Int[Tensor, " order"]:
    """Return perm such that ``field[perm]`` is the regular field (one channel per element) after ``element``.

    ``(g f)(h) = f(g^-1 h)``.
    """
    undo = element.inverse()
    return torch.tensor([group.index(undo.compose(other)) for other in group.elements])
