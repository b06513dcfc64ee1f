"""Write a description in the words of layers; families and people who describe a model by hand use the same.

    build = Builder("my-net", state)
    build.space("hidden", "permutation", 512)
    build.linear("fc1", writes="hidden")
    build.linear("fc2", reads="hidden")
    symmetry = build.done()

Whatever is not named stays as it is. ``verify_symmetry`` tells whether the description is right. A module of your own
that has a method ``describe_symmetry(self, build)`` is described by it, and tested, wherever POPMI needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.matching.steps import Step
from popmi_core.matching.symmetry import Axis, Kind, MapKind, Space, Symmetry, Tap

METHOD = "describe_symmetry"
# The next step in every error about a module that no family knows.
BY_HAND = f"Describe it by hand: give the model's class a method {METHOD}(self, build), see docs/symmetries.md"
_STATISTICS = ("running_mean", "running_var")


def next_step(family: str) -> str:
    """Return what to do about a description that does not fit: correct one's own, or write one."""
    return f"Correct {family}, see docs/symmetries.md" if family.endswith(METHOD) else BY_HAND


class Builder:
    """Collects spaces, axes, steps and taps; every size is checked against the tensors.

    In a model of regular fields an entry of a space is a field. A layer reads its ``order`` channels side by side along
    axis 1; those in ``summed`` (classifiers) have one number for all of them. 1: a field is a channel, a plain model.
    """

    def __init__(
        self,
        family: str,
        state: Mapping[str, Tensor],
        *,
        prefix: str = "",
        order: int = 1,
        summed: Collection[str] = (),
    ) -> None:
        self.family, self.prefix, self.order, self.summed = family, prefix, order, summed
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self.spaces: dict[str, Space] = {}
        self.axes: list[Axis] = []
        self.steps: list[Step] = []
        self.taps: list[Tap] = []
        self.notes: list[str] = []
        self.stills: set[str] = set()

    def has(self, tensor: str) -> bool:
        """Whether the state has this tensor (named without the prefix)."""
        return self.prefix + tensor in self.shapes

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            ModelError: If the state has no such tensor.
        """
        if not self.has(tensor):
            raise ModelError(
                f"{self.family}: the state has no '{self.prefix}{tensor}', which the description expects. "
                f"{next_step(self.family)}."
            )
        return self.shapes[self.prefix + tensor]

    def space(
        self,
        name: str,
        kind: Kind,
        size: int,
        *,
        inner: int = 1,
        maps: Mapping[str, MapKind] | None = None,
        shifts: tuple[tuple[int, ...], ...] = (),
        rescalable: bool = False,
    ) -> str:
        """Declare a space and return its name; the same name twice must mean the same.

        Raises:
            ModelError: If the name is taken by another space.
        """
        made = Space(self.prefix + name, kind, size, inner, dict(maps or {}), shifts, rescalable)
        known = self.spaces.setdefault(made.name, made)
        if known != made:
            raise ModelError(
                f"{self.family}: space '{name}' is declared twice, as {known} and {made}. Name them apart."
            )
        return name

    def axis(
        self,
        tensor: str,
        axis: int,
        space: str,
        *,
        part: str = "",
        dual: bool = False,
        start: int = 0,
        stop: int | None = None,
        repeat: int = 1,
        spread: int = 1,
        counts: bool = True,
        scales: bool = True,
    ) -> None:
        """Say that a tensor's axis (or its slice) belongs to a space.

        Raises:
            ModelError: If the sizes do not fit or the space is not declared.
        """
        shape = self.shape(tensor)
        if self.prefix + space not in self.spaces:
            raise ModelError(f"{self.family}: space '{space}' of '{tensor}' is not declared. Call space() first.")
        length = len(range(*slice(start, stop).indices(shape[axis])))
        width = self.spaces[self.prefix + space].width(part)
        if length != repeat * width * spread:
            raise ModelError(
                f"{self.family}: axis {axis} of '{self.prefix}{tensor}' {shape} has {length} entries there, expected "
                f"{repeat} x {width} x {spread} of space '{space}'. {next_step(self.family)}."
            )
        named = (self.prefix + tensor, axis % len(shape), self.prefix + space)
        self.axes.append(Axis(*named, part, dual, start, stop, repeat, spread, counts, scales))

    def linear(
        self,
        layer: str,
        *,
        reads: str | None = None,
        writes: str | None = None,
        repeat: int = 1,
        spread: int = 1,
        normed: bool = False,
    ) -> None:
        """Say which spaces a Linear or an ungrouped convolution reads (axis 1) and writes (axis 0 and bias).

        ``normed``: a norm comes right after it, so that a unit's scale is not in its weights but in the norm's.
        """
        if writes is not None:
            self.axis(f"{layer}.weight", 0, writes, scales=not normed)
            if self.has(f"{layer}.bias"):
                self.axis(f"{layer}.bias", 0, writes, scales=not normed)
        else:
            self.still(f"{layer}.bias")
        if reads is not None:
            self.reads(layer, reads, repeat=repeat, spread=spread)

    def reads(
        self,
        layer: str,
        space: str,
        *,
        part: str = "",
        start: int = 0,
        stop: int | None = None,
        repeat: int = 1,
        spread: int = 1,
    ) -> None:
        """Say which space a layer reads (axis 1); ``start`` and ``stop`` count as in the layer before, in fields."""
        order = self.order_of(layer)
        self.axis(
            f"{layer}.weight",
            1,
            space,
            part=part,
            dual=True,
            start=start * order,
            stop=None if stop is None else stop * order,
            repeat=repeat,
            spread=spread * order,
        )

    def order_of(self, layer: str) -> int:
        """Return how many numbers a layer has for one field that it reads: |G|, or 1."""
        return 1 if self.prefix + layer in self.summed else self.order

    def inputs(self, layer: str) -> int:
        """Return how many channels, or fields, a layer reads."""
        return self.shape(f"{layer}.weight")[1] // self.order_of(layer)

    def depthwise(self, layer: str, space: str) -> None:
        """Say that a depthwise convolution works channel by channel in a space."""
        self.linear(layer, writes=space, normed=True)

    def norm(self, layer: str, space: str) -> None:
        """Say that a norm's gamma, beta and running statistics (which only follow) belong to a space."""
        for part in ("weight", "bias", *_STATISTICS):
            if self.has(f"{layer}.{part}"):
                follows = part in _STATISTICS
                self.axis(f"{layer}.{part}", 0, space, counts=not follows, scales=not follows)
        self.still(f"{layer}.num_batches_tracked")

    def still(self, *tensors: str) -> None:
        """Name tensors that no move changes (tables, the classes' biases); unknown names are no error."""
        self.stills |= {self.prefix + tensor for tensor in tensors}

    def tap(
        self,
        module: str,
        side: Literal["input", "output"],
        axis: int,
        space: str,
        *,
        part: str = "",
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Say where a space shows in activations (module named without the prefix; slices in channels or fields)."""
        stop = None if stop is None else stop * self.order
        at = (part, start * self.order, stop, self.order)
        self.taps.append(Tap(self.prefix + module, side, axis, self.prefix + space, *at))

    def step(self, step: Step) -> None:
        """Add a step to the common spelling; its tensors carry the prefix already."""
        self.steps.append(step)

    def note(self, text: str) -> None:
        """Add what a person should know."""
        self.notes.append(text)

    def done(self) -> Symmetry:
        """Return the description.

        Raises:
            ModelError: If a space has no axis, or a tensor is neither moved nor named as one that stays.
        """
        used = {axis.space for axis in self.axes}
        for name in self.spaces:
            if name not in used:
                raise ModelError(f"{self.family}: space '{name}' has no axis. Name the tensors it lies in.")
        stepped = {name for step in self.steps for name in step.names()}
        stepped |= {f"{name.removesuffix('.weight')}.bias" for name in stepped}
        unknown = sorted(set(self.shapes) - {axis.tensor for axis in self.axes} - stepped - self.stills)
        if unknown:
            module = unknown[0].rpartition(".")[0] or unknown[0]
            raise ModelError(
                f"{self.family}: module '{module}' is not described (its tensor '{unknown[0]}', {len(unknown)} such in "
                f"all). {next_step(self.family)}; or take a rule that needs no description."
            )
        steps = sorted(self.steps, key=lambda step: step.turn)
        return Symmetry(
            self.family, dict(self.spaces), tuple(self.axes), tuple(steps), tuple(self.taps), tuple(self.notes)
        )
