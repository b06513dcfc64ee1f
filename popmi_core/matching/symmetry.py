"""Which axes of which tensors move together, and under which group: a description that any code can read.

A network computes the same function after certain changes of basis. Each such basis is a ``Space`` (a layer's hidden
units, the residual stream, the heads of an attention layer); each ``Axis`` says where in the weights it lies. Nothing
here knows an architecture: ``families/`` writes the descriptions, ``Builder`` helps people to write their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from popmi_core.matching.steps import Step

State = Mapping[str, Tensor]
Kind = Literal["permutation", "grouped", "orthogonal", "heads", "fields"]
MapKind = Literal["linear", "orthogonal", "fixed"]


@dataclass(frozen=True)
class Space:
    """One basis and the group that may change it.

    Attributes:
        name: What a person calls it: ``stream``, ``blocks.0.mlp``.
        kind: ``permutation`` of units; ``grouped``: of groups, and of units inside each (GroupNorm); ``orthogonal``:
            rotations with ``R 1 = 1`` (they pass LayerNorm); ``heads``: of heads, with a basis change inside each;
            ``fields``: of regular-representation fields, with a group shift in each (commutes with the group).
        size: Units, groups, channels, heads or fields.
        inner: Units of a group, channels of a head, or order of a field's group.
        maps: ``heads`` only: the bases inside a head by part, and which maps keep the function: ``linear`` (any
            invertible one), ``orthogonal`` or ``fixed``. A low-rank adapter is one head with one linear map.
        shifts: ``fields`` only: row s is the order of a field's channels after shift s, an ``inner x inner`` table.
        rescalable: ``permutation`` only: units may also be scaled by positive numbers (ReLU passes them).
    """

    name: str
    kind: Kind
    size: int
    inner: int = 1
    maps: Mapping[str, MapKind] = field(default_factory=dict)
    shifts: tuple[tuple[int, ...], ...] = ()
    rescalable: bool = False

    def width(self, part: str = "") -> int:
        """Return how many entries of an axis the space covers."""
        if self.kind in ("permutation", "orthogonal") or (self.kind == "heads" and not part):
            return self.size
        return self.size * self.inner


@dataclass(frozen=True)
class Axis:
    """Where a space lies in a tensor: ``tensor.axis[start:stop]`` is (repeat, width, spread), so ``I (x) g (x) I``.

    ``part`` names the map inside heads that acts here (empty: one entry a head). ``dual`` axes read what others write:
    they move by the inverse transpose (keys, projections). ``counts`` is False for what only follows (running
    statistics): it moves but says nothing about which unit is which. ``scales`` is False where a unit's scale does not
    reach (what a norm divides out again).
    """

    tensor: str
    axis: int
    space: str
    part: str = ""
    dual: bool = False
    start: int = 0
    stop: int | None = None
    repeat: int = 1
    spread: int = 1
    counts: bool = True
    scales: bool = True


@dataclass(frozen=True)
class Tap:
    """Where a space shows in activations: one axis of a module's input or output, sliced and spread as in ``Axis``."""

    module: str
    side: Literal["input", "output"]
    axis: int
    space: str
    part: str = ""
    start: int = 0
    stop: int | None = None
    spread: int = 1


@dataclass(frozen=True)
class Symmetry:
    """The symmetry group of one architecture: independent spaces, and every axis they move.

    ``steps`` bring a state into the one spelling in which all axes are plain (see canonical.py).
    """

    family: str
    spaces: Mapping[str, Space]
    axes: tuple[Axis, ...]
    steps: tuple[Step, ...] = ()
    taps: tuple[Tap, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, space: str) -> tuple[Axis, ...]:
        """Return the axes of one space."""
        return tuple(axis for axis in self.axes if axis.space == space)

    def names(self) -> set[str]:
        """Return every tensor that a move changes or a step rewrites; a state without all of them is not matched."""
        return {axis.tensor for axis in self.axes} | {name for step in self.steps for name in step.names()}

    def only(self, *kinds: Kind) -> Symmetry:
        """Return the subgroup of the spaces of these kinds."""
        return self.without({name for name, space in self.spaces.items() if space.kind not in kinds})

    def without(self, dropped: set[str], reason: str = "") -> Symmetry:
        """Return the subgroup that leaves these spaces as they are; ``reason`` goes into the notes."""
        return replace(
            self,
            spaces={name: space for name, space in self.spaces.items() if name not in dropped},
            axes=tuple(axis for axis in self.axes if axis.space not in dropped),
            taps=tuple(tap for tap in self.taps if tap.space not in dropped),
            notes=(*self.notes, *(f"{name} fixed: {reason}" for name in sorted(dropped) if reason)),
        )

    def within(self, names: Collection[str]) -> Symmetry:
        """Return the subgroup that moves nothing but these tensors: what can be matched when only they travel.

        A space stays if one of its tensors does. So does every rotated stream, because norms must be folded for it, and
        a norm that stays at the site cannot be. With a frozen base what is left are the adapters' own spaces.
        """
        if self.names() <= set(names):
            return self
        held = {axis.space for axis in self.axes if axis.tensor not in names}
        held |= {name for name, space in self.spaces.items() if space.kind == "orthogonal"}
        # No space that is left needs a step: its moves keep the function as the tensors lie.
        kept, held = self.without(held), held & set(self.spaces)
        note = f"{len(held)} of {len(self.spaces)} spaces fixed: not all of their tensors travel"
        return replace(kept, steps=(), notes=(*kept.notes, note))

    def permutations_only(self) -> Symmetry:
        """Return the subgroup of pure permutations: no rotation of a stream, no basis change inside heads."""
        spaces = {
            name: replace(space, maps=dict.fromkeys(space.maps, "fixed"), rescalable=False)
            for name, space in self.spaces.items()
        }
        # A rotation's subgroup of permutations is all of them: every permutation keeps the vector of ones.
        spaces = {
            name: replace(space, kind="permutation") if space.kind == "orthogonal" else space
            for name, space in spaces.items()
        }
        # Nothing has to be folded for an order, so gamma, beta and LayerScale move along; folded, they tell nothing.
        known = set(self.axes)
        axes = tuple(axis if axis in known else replace(axis, counts=False) for axis in self.in_own_spelling())
        return replace(self, spaces=spaces, axes=axes)

    def in_own_spelling(self) -> tuple[Axis, ...]:
        """Return all axes, with those of the norms and LayerScales that a rotation would have folded away.

        With them a permutation keeps the function of a state in any spelling.
        """
        axes = list(self.axes)
        for step in self.steps:
            vectors, sides = step.vectors()
            beside = [axis for axis in self.axes if (axis.tensor, axis.axis) in sides]
            # A vector has one number for every entry, however many of a layer's inputs that is.
            axes += [replace(axis, tensor=name, axis=0, dual=False, spread=1) for axis in beside for name in vectors]
        # Several readers of one norm say the same of it.
        return tuple({(axis.tensor, axis.axis, axis.space, axis.start, axis.part): axis for axis in axes}.values())
