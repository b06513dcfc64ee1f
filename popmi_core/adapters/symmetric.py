"""A ViT merged at block 0: the patch kernel is tied (see tied.py), and so is the table of positions.

The table keeps one row per orbit of grid cells: with the kernel, all places enter by. Names stay those of timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from popmi_core.adapters.tied import orbit_means
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, grid_orbits

Vit = Any


def tie_positions(vit: Vit, group: PointGroup) -> Int[Tensor, " cells"] | None:
    """Store one position per orbit in ``vit``, in place; return the orbit of each token (None: no position table).

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
    table = None if orbits is None else position_table(vit, orbits)
    return embed_with(vit, images, [getattr(vit, name) for name in special_tokens(vit)], table)


def special_tokens(vit: Vit) -> list[str]:
    """Return the names of the class and register tokens, in the order in which timm puts them before the others."""
    # DeiT's distilled transformer takes registers, and does not use them.
    names = ("cls_token", "dist_token") if hasattr(vit, "dist_token") else ("cls_token", "reg_token")
    return [name for name in names if getattr(vit, name, None) is not None]


def embed_with(
    vit: Vit, images: Float[Tensor, "n 3 side side"], specials: Sequence[Tensor], table: Tensor | None
) -> Float[Tensor, "n tokens dim"]:
    """Return the tokens before the first block, from dense class and register tokens and a dense position table."""
    tokens = vit.patch_embed(images)
    before = [token.expand(tokens.shape[0], -1, -1) for token in specials]
    if table is not None and vit.no_embed_class:
        tokens = tokens + table
    tokens = torch.cat([*before, tokens], dim=1)
    if table is not None and not vit.no_embed_class:
        tokens = tokens + table
    if table is not None:
        tokens = vit.pos_drop(tokens)
    embedded: Tensor = vit.norm_pre(vit.patch_drop(tokens))
    return embedded


def untie_positions(vit: Vit, orbits: Int[Tensor, " cells"] | None) -> None:
    """Undo ``tie_positions`` in place: the dense table of the same positions."""
    if orbits is not None:
        vit.pos_embed = nn.Parameter(position_table(vit, orbits).detach().clone())
