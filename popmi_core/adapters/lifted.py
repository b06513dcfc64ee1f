"""A lifted convolution of tokens: neighbours are seen again after the merge, and the group is still kept."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from popmi_core.groups import PointGroup, act

_SIDE = 3


class LiftedConv(nn.Module):
    """Add to every token what a small group convolution makes of its 3 x 3 neighbourhood.

    Tokens are a scalar field. They are reduced to ``rank`` channels, lifted to regular fields (one channel per group
    element, all kernels turns of one: Cohen & Welling 2016, arXiv:1602.07576, equation 10), pass GELU, are brought back
    to scalars by the mean over the group, and widened. Zero padding and 3 x 3 pixels are symmetric, so the layer
    commutes with the group whatever its weights. ``up`` starts at zero: attaching changes nothing.

    Parameters: ``down`` [rank, dim], ``conv`` [rank, rank, 3, 3] (the kernel that is turned), ``up`` [dim, rank].
    """

    def __init__(self, group: PointGroup, dim: int, rank: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.group = group
        # Uninitialised: torch's own start would draw from the global generator.
        self.down = skip_init(nn.Linear, dim, rank)
        self.conv = skip_init(nn.Conv2d, rank, rank, _SIDE, padding=_SIDE // 2)
        self.up = skip_init(nn.Linear, rank, dim)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(rank, dim, generator=generator) / math.sqrt(dim))
            drawn = torch.randn(self.conv.weight.shape, generator=generator)
            self.conv.weight.copy_(drawn / math.sqrt(rank * _SIDE * _SIDE))
            for tensor in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, grid: Float[Tensor, "n side side dim"]) -> Float[Tensor, "n side side dim"]:
        """Return the tokens plus the convolution's output."""
        elements = self.group.elements
        bank = torch.cat([act(element, self.conv.weight) for element in elements])
        low = self.down(grid).permute(0, 3, 1, 2)
        fields = functional.conv2d(low, bank, self.conv.bias.repeat(len(elements)), padding=_SIDE // 2)
        scalars = functional.gelu(fields).unflatten(1, (len(elements), -1)).mean(dim=1)
        step: Tensor = self.up(scalars.permute(0, 2, 3, 1))
        return grid + step
