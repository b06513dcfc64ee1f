"""Tied convolutions: kernels constant on the group's orbits of pixels, one stored value per orbit.

On scalar fields (a rotation only moves places) a convolution commutes with the group exactly if its kernel is
invariant, and the orbit mean is the orthogonal projection on such kernels. Only the free coefficients are stored, so
averaging, weight decay, server optimisers and DP noise cannot leave the invariant subspace, and fewer bytes travel.
Names stay those of timm; the pixel axes are what shrinks: 8x8 pixels become 16 numbers under C4, 10 under D4.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, grid_orbits


class TiedConv2d(nn.Conv2d):
    """A convolution whose kernel is constant on the group's orbits of pixels.

    ``weight`` [out, in / groups, orbits] is one value per orbit; the kernel [out, in / groups, side, side] is made of
    it. Stride, padding (timm's 'same' too), dilation and groups are those of the convolution it stands for; whether
    strides keep the symmetry depends on the size of the map (see geometry).

    Raises:
        ModelError: If rows and columns are treated differently, or it is a convolution of another kind.
    """

    orbits: Tensor

    def __init__(self, conv: nn.Conv2d, group: PointGroup) -> None:
        _require_known(conv)
        # Made without storage: torch's own start would draw from the global generator.
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.same = isinstance(conv, Conv2dSame)
        orbits = grid_orbits(group, conv.kernel_size[0]).to(conv.weight.device)
        self.register_buffer("orbits", orbits, persistent=False)
        self.weight = nn.Parameter(orbit_means(conv.weight.detach().flatten(2), orbits.flatten()))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    def kernel(self) -> Float[Tensor, "out in side side"]:
        """Return the kernel as a dense convolution would store it."""
        return self.weight[:, :, self.orbits]

    def forward(self, images: Float[Tensor, "n in height width"]) -> Float[Tensor, "n out rows columns"]:
        """Return what the dense convolution would."""
        kernel = self.kernel()
        if self.same:
            stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
            images = pad_same(images, list(kernel.shape[-2:]), list(stride), list(dilation))
        return self._conv_forward(images, kernel, self.bias)

    def dense(self) -> nn.Conv2d:
        """Return the ordinary convolution (timm's own kind) that computes the same."""
        made = Conv2dSame if self.same else nn.Conv2d
        options = {} if self.same else {"padding_mode": self.padding_mode}
        conv = made(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            bias=False,
            device="meta",
            **options,
        )
        conv.weight = nn.Parameter(self.kernel().detach().clone())
        conv.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)


def orbit_means(values: Float[Tensor, "*batch cells"], orbits: Int[Tensor, " cells"]) -> Float[Tensor, "*batch orbits"]:
    """Return the mean of ``values`` over each orbit: the orthogonal projection on the invariant subspace."""
    count = int(orbits.max()) + 1
    sizes = torch.bincount(orbits, minlength=count).to(values)
    return values.new_zeros(*values.shape[:-1], count).index_add(-1, orbits.to(values.device), values) / sizes


def _require_known(conv: nn.Conv2d) -> None:
    if type(conv) not in (nn.Conv2d, Conv2dSame):
        raise ModelError(
            f"a convolution of kind {type(conv).__name__} cannot be tied, expected torch's Conv2d or timm's "
            "Conv2dSame. Merge after it: a later merge_block."
        )
    pairs = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    if any(isinstance(pair, tuple) and len(set(pair)) > 1 for pair in pairs):
        raise ModelError(
            f"a convolution with kernel {conv.kernel_size}, stride {conv.stride}, padding {conv.padding} treats rows "
            "and columns differently and cannot be tied. Merge after it: a later merge_block."
        )
