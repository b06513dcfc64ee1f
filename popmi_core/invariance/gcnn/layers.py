"""Convolutions on the group: one free kernel, turned and its channels reordered, makes a dense one for ``conv2d``.

A field on the group [n, channels, order, side, side] is kept as [n, channels * order, side, side], the element fast.
Cohen and Welling (2016), "Group equivariant convolutional networks", arXiv:1602.07576, equations 10 and 11. On C4 and
D4 every turn of a kernel is a move of its numbers, so the layers are exact and cost no more than ``conv2d``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.groups import PointGroup
from popmi_core.groups.convolution import lifting_kernel, regular_kernel


class LiftConv(nn.Module):
    """Image -> field on the group: output at v uses the kernel turned by v.

    Parameters: ``weight`` [out, in, side, side].
    """

    def __init__(self, group: PointGroup, channels: int, out: int, side: int, *, padding: int = 0) -> None:
        super().__init__()
        self.group, self.padding = group, padding
        self.weight = nn.Parameter(torch.randn(out, channels, side, side) * math.sqrt(2 / (channels * side**2)))

    def kernel(self) -> Float[Tensor, "fields channels side side"]:
        """Return the dense kernel."""
        return lifting_kernel(self.weight, self.group)

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n fields rows columns"]:
        """Return the lifted field."""
        return functional.conv2d(images, self.kernel(), padding=self.padding)


class RegularConv(nn.Module):
    """Field on the group -> field on the group: kernel at (v, g) is the free one at v^-1 g, turned by v.

    Parameters: ``weight`` [out, in, order, side, side].
    """

    def __init__(self, group: PointGroup, channels: int, out: int, side: int, *, padding: int = 0) -> None:
        super().__init__()
        self.group, self.padding = group, padding
        order = len(group)
        scale = math.sqrt(2 / (channels * order * side**2))
        self.weight = nn.Parameter(torch.randn(out, channels, order, side, side) * scale)

    def kernel(self) -> Float[Tensor, "fields channels side side"]:
        """Return the dense kernel."""
        return regular_kernel(self.weight, self.group)

    def forward(self, field: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n fields rows columns"]:
        """Return the convolved field."""
        return functional.conv2d(field, self.kernel(), padding=self.padding)


class FieldNorm(nn.Module):
    """Batch norm with one mean, variance, scale and shift per channel, shared by the group's elements."""

    def __init__(self, order: int, channels: int) -> None:
        super().__init__()
        self.order = order
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, field: Float[Tensor, "n fields height width"]) -> Float[Tensor, "n fields height width"]:
        """Return the normalised field."""
        return self.norm(field.unflatten(1, (-1, self.order))).flatten(1, 2)
