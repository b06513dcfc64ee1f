"""A ViT's own tensors between regular fields: class and register tokens, and the table of positions.

A token without a place is one number a field. Positions are a field that turns with the grid,
``p(x)(h) = table(h^-1 x)`` with a free table [1, cells, fields]: cells that a mirror fixes get fields it fixes too.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from popmi_core.adapters.regular.layers import per_channel
from popmi_core.adapters.symmetric import embed_with, special_tokens
from popmi_core.groups import PointGroup, grid_permutation

# timm's ViTs are typed by convention only.
Vit = Any
TOKENS = ("cls_token", "dist_token", "reg_token")


def share_tokens(vit: Vit, group: PointGroup, side: int) -> Int[Tensor, "cells order"] | None:
    """Store tokens and positions free, in place; return the cell of the table that each cell and element shows."""
    for name in TOKENS:
        token = getattr(vit, name, None)
        if token is not None:
            setattr(vit, name, _first_channels(token, len(group)))
    if vit.pos_embed is None:
        return None
    vit.pos_embed = _first_channels(vit.pos_embed, len(group))
    index = torch.stack([grid_permutation(element, side) for element in group.elements], dim=1)
    return index.to(vit.pos_embed.device)


def dense_tokens(vit: Vit, order: int, index: Int[Tensor, "cells order"] | None) -> None:
    """Undo ``share_tokens`` in place: timm's own shapes, the same function."""
    for name in TOKENS:
        token = getattr(vit, name, None)
        if token is not None:
            setattr(vit, name, nn.Parameter(per_channel(token.detach(), order).clone()))
    if index is not None:
        vit.pos_embed = nn.Parameter(position_table(vit, order, index).detach().clone())


def position_table(vit: Vit, order: int, index: Int[Tensor, "cells order"]) -> Float[Tensor, "1 tokens dim"]:
    """Return the dense position table (class and register rows first, where the backbone has them)."""
    extra = vit.pos_embed.shape[1] - len(index)
    places = vit.pos_embed[:, extra:][:, index].transpose(2, 3).flatten(2)
    return torch.cat([per_channel(vit.pos_embed[:, :extra], order), places], dim=1)


def embed(
    vit: Vit, images: Float[Tensor, "n 3 side side"], order: int, index: Int[Tensor, "cells order"] | None
) -> Float[Tensor, "n tokens dim"]:
    """Return the tokens before the first block, as timm does, from what is stored free."""
    table = None if index is None else position_table(vit, order, index)
    specials = [per_channel(getattr(vit, name), order) for name in special_tokens(vit)]
    return embed_with(vit, images, specials, table)


def _first_channels(table: Tensor, order: int) -> nn.Parameter:
    return nn.Parameter(table.detach()[..., ::order].clone(), requires_grad=table.requires_grad)
