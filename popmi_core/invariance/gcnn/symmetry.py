"""What may move in a network on the group: whole fields change places, which commutes with the group.

Free kernels [out, in, order, side, side] hold nothing that could break the symmetry, so every move, and every mean of
models moved this way, is exactly invariant. Shifts of a field by the group are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from popmi_core.invariance.gcnn.layers import FieldNorm, LiftConv, RegularConv

# The Builder of popmi_core.matching, which lies above this package.
Builder = Any
# The spaces that lie side by side in a field's channels, each with its width.
Spaces = list[tuple[str, int]]


def describe_layers(layers: Iterable[tuple[str, nn.Module]], build: Builder, spaces: Spaces) -> Spaces:
    """Describe layers by name, one after the other, from what is read (nothing: pixels) to what is written."""
    for name, layer in layers:
        if isinstance(layer, LiftConv | RegularConv):
            _reads(f"{name}.weight", build, spaces, axis=1)
            spaces = [(build.space(name, "permutation", len(layer.weight)), len(layer.weight))]
            build.axis(f"{name}.weight", 0, name, scales=False)
        elif isinstance(layer, FieldNorm):
            for part in ("weight", "bias", "running_mean", "running_var"):
                follows = part.startswith("running")
                _reads(f"{name}.norm.{part}", build, spaces, axis=0, counts=not follows, scales=not follows)
            build.still(f"{name}.norm.num_batches_tracked")
        elif isinstance(new := getattr(layer, "new", None), nn.Sequential):
            # A dense layer appends what its own layers make.
            inner = [(f"{name}.new.{child}", part) for child, part in new.named_children()]
            spaces = spaces + describe_layers(inner, build, spaces)
    return spaces


def describe_head(build: Builder, spaces: Spaces) -> None:
    """Describe the last layer, which reads one invariant a field."""
    if build.has("head.weight"):
        _reads("head.weight", build, spaces, axis=1)
        build.still("head.bias")
        start = 0
        for space, width in spaces:
            build.tap("head", "input", -1, space, start=start, stop=start + width)
            start += width


def _reads(tensor: str, build: Builder, spaces: Spaces, *, axis: int, **options: bool) -> None:
    start = 0
    for space, width in spaces:
        build.axis(tensor, axis, space, dual=axis == 1, start=start, stop=start + width, **options)
        start += width
