"""Finite groups of whatever acts on an input: the one interface under every method that runs over an orbit."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.groups.actions import act
from popmi_core.groups.point_group import PointGroup, point_group
from popmi_core.groups.rotations import RotationAction


class FiniteAction(Protocol):
    """A finite group, its elements numbered from 0 (the identity), and how they move a tensor.

    Laws, up to interpolation where ``exact`` is False: ``act(0, x) = x``;
    ``act(compose(a, b), x) = act(a, act(b, x))``; ``undo(a, act(a, x)) = x``.
    """

    @property
    def name(self) -> str:
        """Short name, such as ``C4``."""

    @property
    def exact(self) -> bool:
        """Whether values only move; False where the action has to interpolate."""

    def __len__(self) -> int:
        """Return the order of the group."""

    def act(self, index: int, inputs: Tensor) -> Tensor:
        """Return g x for element ``index``; a new tensor or a view."""

    def undo(self, index: int, features: Tensor) -> Tensor:
        """Return g^-1 f for element ``index``."""

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""


class SquareAction:
    """A point group on images [..., side, side] or, with other ``dims``, on token grids [n, side, side, dim]."""

    exact = True

    def __init__(self, group: PointGroup, dims: tuple[int, int] = (-2, -1)) -> None:
        self.group, self.dims, self.name = group, dims, group.name

    def __len__(self) -> int:
        return len(self.group)

    def act(self, index: int, inputs: Tensor) -> Tensor:
        """Return the turned (and mirrored) images.

        Raises:
            ModelError: If they are not square.
        """
        require_square(inputs, self.dims)
        return act(self.group.elements[index], inputs, self.dims)

    def undo(self, index: int, features: Tensor) -> Tensor:
        """Return the feature maps turned back."""
        return self.act(self.inverse(index), features)

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""
        return self.group.index(self.group.elements[outer].compose(self.group.elements[inner]))

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""
        return self.group.index(self.group.elements[index].inverse())


class JointAction:
    """Several actions of one group at once, such as turning a map and shifting its regular channels.

    Raises:
        ModelError: If their groups are not the same, element by element.
    """

    def __init__(self, *actions: FiniteAction) -> None:
        self.actions = actions
        self.name = " and ".join(dict.fromkeys(action.name for action in actions))
        self.exact = all(action.exact for action in actions)
        tables = [_table(action) for action in actions]
        if not actions or any(table != tables[0] for table in tables):
            orders = ", ".join(f"{action.name} (order {len(action)})" for action in actions)
            raise ModelError(
                f"a joint action needs one group in every part, got {orders or 'none'}. "
                "Give actions of the same group, their elements in the same order."
            )

    def __len__(self) -> int:
        return len(self.actions[0])

    def act(self, index: int, inputs: Tensor) -> Tensor:
        """Return what all actions do to ``inputs``, first to last."""
        for action in self.actions:
            inputs = action.act(index, inputs)
        return inputs

    def undo(self, index: int, features: Tensor) -> Tensor:
        """Return what all actions undo, last to first."""
        for action in reversed(self.actions):
            features = action.undo(index, features)
        return features

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""
        return self.actions[0].compose(outer, inner)

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""
        return self.actions[0].inverse(index)


def image_action(name: str) -> FiniteAction:
    """Return the group ``name`` on square images [..., side, side].

    Args:
        name: C1, C2, C4, D1, D2, D4 (moves pixels), or C and a number, such as C8 or C16: that many rotations, those
            between quarter turns interpolated (bicubic).

    Raises:
        ModelError: If it is none of these.
    """
    if name[:1] == "C" and name[1:].isdecimal() and int(name[1:]) not in (1, 2, 4):
        return RotationAction(int(name[1:]))
    if name in ("C1", "C2", "C4", "D1", "D2", "D4"):
        return SquareAction(point_group(name))
    raise ModelError(
        f"group {name!r} does not act on images, expected C1, C2, C4, D1, D2, D4 or C followed by a number of "
        "rotations, such as C8. Mirror images go with quarter turns only: D4."
    )


def orbit(action: FiniteAction, inputs: Tensor) -> Tensor:
    """Return all g x of inputs [n, ...] as [order * n, ...]: row ``index * n + i`` is g_index x_i."""
    return torch.cat([action.act(index, inputs) for index in range(len(action))])


def require_square(images: Tensor, dims: tuple[int, int]) -> None:
    """Refuse images that a quarter turn would give another shape.

    Raises:
        ModelError: If the sizes of ``dims`` differ.
    """
    rows, columns = images.shape[dims[0]], images.shape[dims[1]]
    if rows != columns:
        raise ModelError(
            f"images are {rows}x{columns} pixels, expected square ones: quarter turns change the shape. "
            "Crop or pad them."
        )


def _table(action: FiniteAction) -> list[list[int]]:
    order = range(len(action))
    return [[action.compose(outer, inner) for inner in order] for outer in order]
