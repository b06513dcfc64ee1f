"""Merging at block 0, folded into the weights: one value per orbit of pixels and of grid cells.

Only these free coefficients are stored, so averaging, weight decay, server optimisers and DP noise
cannot leave the invariant subspace, and fewer bytes travel. Names stay those of timm; the last
axis (pixels, tokens) is what shrinks: 8x8 pixels become 16 numbers under C4, 10 under D4.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, grid_orbits

Vit = Any


class OrbitConv(nn.Module):
    """A patch convolution whose kernel is constant on the group's orbits of pixels.

    ``weight`` [out, in, orbits] is one value per orbit; the kernel [out, in, side, side] is made of it.
    """

    orbits: Tensor

    def __init__(self, conv: nn.Conv2d, group: PointGroup) -> None:
        super().__init__()
        side = conv.kernel_size[0]
        self.register_buffer("orbits", grid_orbits(group, side), persistent=False)
        self.weight = nn.Parameter(orbit_means(conv.weight.detach().flatten(2), self.orbits.flatten()))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.stride = side

    def kernel(self) -> Float[Tensor, "out in side side"]:
        """Return the kernel as a dense convolution would store it."""
        return self.weight[:, :, self.orbits]

    def forward(self, images: Float[Tensor, "n in height width"]) -> Float[Tensor, "n out rows columns"]:
        """Return one vector per patch."""
        return functional.conv2d(images, self.kernel(), self.bias, stride=self.stride)

    def dense(self) -> nn.Conv2d:
        """Return the ordinary convolution that computes the same."""
        out, fan_in = self.weight.shape[:2]
        shape = {"kernel_size": self.stride, "stride": self.stride, "bias": self.bias is not None}
        conv: nn.Conv2d = skip_init(nn.Conv2d, fan_in, out, **shape).to(self.weight)
        with torch.no_grad():
            conv.weight.copy_(self.kernel())
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv


def orbit_means(values: Float[Tensor, "*batch cells"], orbits: Int[Tensor, " cells"]) -> Float[Tensor, "*batch orbits"]:
    """Return the mean of ``values`` over each orbit: the orthogonal projection on the invariant subspace."""
    count = int(orbits.max()) + 1
    sizes = torch.bincount(orbits, minlength=count).to(values)
    return values.new_zeros(*values.shape[:-1], count).index_add(-1, orbits.to(values.device), values) / sizes


def symmetrise(vit: Vit, group: PointGroup) -> Int[Tensor, " cells"] | None:
    """Put free coefficients into ``vit`` in place; return the orbit of each token (None: no position table).

    Raises:
        ModelError: If patches do not tile the image or overlap: the border would break the symmetry.
    """
    conv, (height, width) = vit.patch_embed.proj, vit.patch_embed.img_size
    side = conv.kernel_size[0]
    square = height == width and conv.kernel_size == conv.stride == (side, side)
    if not square or height % side or vit.dynamic_img_size:
        raise ModelError(
            f"merge_block 0 needs square patches that tile a square image: {side} pixels do not tile "
            f"{height}x{width}. Change image_size or patch_size, or use merge_block >= 1."
        )
    vit.patch_embed.proj = OrbitConv(conv, group)
    if vit.pos_embed is None:
        return None
    orbits = grid_orbits(group, height // side).flatten()
    extra = vit.pos_embed.shape[1] - orbits.numel()
    table = vit.pos_embed.detach()
    means = orbit_means(table[:, extra:].transpose(1, 2), orbits).transpose(1, 2)
    vit.pos_embed = nn.Parameter(torch.cat([table[:, :extra], means], dim=1))
    return orbits


def position_table(vit: Vit, orbits: Int[Tensor, " cells"]) -> Float[Tensor, "1 tokens dim"]:
    """Return the dense position table (class and register rows first, where the backbone has them)."""
    extra = vit.pos_embed.shape[1] - (int(orbits.max()) + 1)
    table: Tensor = torch.cat([vit.pos_embed[:, :extra], vit.pos_embed[:, extra:][:, orbits]], dim=1)
    return table


def embed(vit: Vit, images: Float[Tensor, "n 3 side side"], orbits: Int[Tensor, " cells"] | None) -> Tensor:
    """Return the tokens before the first block, as timm does, with the table made from its coefficients."""
    tokens = vit.patch_embed(images)
    specials = [token.expand(len(tokens), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    table = None if orbits is None else position_table(vit, orbits)
    if table is not None and vit.no_embed_class:
        tokens = tokens + table
    tokens = torch.cat([*specials, tokens], dim=1)
    if table is not None and not vit.no_embed_class:
        tokens = tokens + table
    embedded: Tensor = vit.norm_pre(vit.patch_drop(vit.pos_drop(tokens)))
    return embedded


def densify(vit: Vit, orbits: Int[Tensor, " cells"] | None) -> None:
    """Undo ``symmetrise`` in place: ordinary timm tensors that compute the same function."""
    table = None if orbits is None else position_table(vit, orbits).detach().clone()
    vit.patch_embed.proj = vit.patch_embed.proj.dense()
    if table is not None:
        vit.pos_embed = nn.Parameter(table)
