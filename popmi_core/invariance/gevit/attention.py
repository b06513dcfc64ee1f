"""Local self-attention that lifts an image to the group, and local self-attention on the group.

Every pixel looks at the window around it (same size all over; cells outside the image are left out). All maps of
channels are shared by all pixels and group elements, so equivariance rests on the relative positions (``rules``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.groups import PointGroup
from popmi_core.invariance.gevit.rules import Family, Rule, pair_index, window_positions

_HIDDEN = 16


class PositionEncoder(nn.Module):
    """Row and column of v^-1 p -> one small network each (linear, norm, Swish, linear) -> [order, cells, 2 * dim]."""

    positions: Tensor

    def __init__(self, group: PointGroup, window: int, dim: int) -> None:
        super().__init__()
        self.row, self.column = (
            nn.Sequential(nn.Linear(1, _HIDDEN), nn.LayerNorm(_HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, dim))
            for _ in range(2)
        )
        self.register_buffer("positions", window_positions(group, window), persistent=False)

    def forward(self) -> Float[Tensor, "order cells twice"]:
        """Return the code of every turned offset."""
        positions = self.positions
        return torch.cat([self.row(positions[..., :1]), self.column(positions[..., 1:])], dim=-1)


class LiftAttention(nn.Module):
    """Image [n, channels, side, side] -> field on the group [n, out, order, side, side].

    One attention map for every v: softmax over the window of q(x) . (k(y) + code(v^-1 (y - x))).
    """

    def __init__(self, group: PointGroup, channels: int, out: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.dim = heads, window, max(2, out // 2 // 2 * 2)
        self.scale = 1 / math.sqrt(self.dim)
        self.qkv = nn.Conv2d(channels, 3 * heads * self.dim, 1)
        self.out = nn.Conv3d(heads * self.dim, out, 1)
        self.code = PositionEncoder(group, window, self.dim // 2)

    def forward(self, images: Float[Tensor, "n channels side side"]) -> Float[Tensor, "n out order side side"]:
        """Return the lifted field."""
        query, key, value = self.qkv(images).unflatten(1, (3, self.heads, self.dim)).unbind(1)
        query = query.flatten(-2)  # n, heads, dim, pixels
        key, value = (windows(part, self.window) for part in (key, value))  # n, heads, dim, cells, pixels
        content = torch.einsum("nhcp,nhckp->nhkp", query, key) + outside(images, self.window)
        scores = content.unsqueeze(2) + torch.einsum("nhcp,vkc->nhvkp", query, self.code())
        weights = (self.scale * scores).softmax(dim=3)
        found = torch.einsum("nhvkp,nhckp->nhcvp", weights, value)
        return self.out(found.flatten(1, 2).unflatten(-1, images.shape[-2:]))


class GroupAttention(nn.Module):
    """Field on the group [n, channels, order, side, side] -> the same with ``out`` channels.

    Output at v = sum over the query's elements g of the attention of (x, g) over all (y, m) of the window, with
    scores q(x, g) . (k(y, m) + code(v^-1 (y - x), index(v, g, m))) / sqrt(dim) (GSA-Nets' group
    self-attention). Cost per pixel and head: order^3 * window^2 scores.
    """

    index: Tensor

    def __init__(
        self,
        group: PointGroup,
        channels: int,
        out: int,
        *,
        heads: int,
        window: int,
        family: Family = "ge-vit",
        rule: Rule = "exact",
    ) -> None:
        super().__init__()
        self.heads, self.window, self.dim = heads, window, max(3, out // 2)
        self.place = self.dim // 3  # of row and of column each; the group's part takes the rest
        self.scale = 1 / math.sqrt(self.dim)
        self.qkv = nn.Conv3d(channels, 3 * heads * self.dim, 1)
        self.out = nn.Conv3d(heads * self.dim, out, 1)
        self.code = PositionEncoder(group, window, self.place)
        self.elements = nn.Embedding(len(group), self.dim - 2 * self.place)
        self.register_buffer("index", pair_index(group, family, rule), persistent=False)

    def forward(self, field: Float[Tensor, "n channels order side side"]) -> Float[Tensor, "n out order side side"]:
        """Return the attended field."""
        query, key, value = self.qkv(field).unflatten(1, (3, self.heads, self.dim)).unbind(1)
        query = query.flatten(-2)  # n, heads, dim, order, pixels
        key, value = (windows(part, self.window).flatten(3, 4) for part in (key, value))  # n, heads, dim, keys, pixels
        weights = self._weights(query, key, outside(field, self.window))
        found = torch.einsum("nhvqp,nhcqp->nhcvp", weights, value)
        return self.out(found.flatten(1, 2).unflatten(-1, field.shape[-2:]))

    def _weights(
        self,
        query: Float[Tensor, "n heads dim order pixels"],
        key: Float[Tensor, "n heads dim keys pixels"],
        mask: Float[Tensor, "cells pixels"],
    ) -> Float[Tensor, "n heads order keys pixels"]:
        """Return the attention of every v over the keys (element m slow, cell fast), summed over queries g."""
        order, cells = query.shape[3], mask.shape[0]
        content = torch.einsum("nhcgp,nhcqp->nhgqp", query, key).unflatten(3, (order, cells)) + mask
        place = torch.einsum("nhcgp,vkc->vnhgkp", query[:, :, : 2 * self.place], self.code()).unsqueeze(4)
        element = torch.einsum("nhcgp,vgmc->vnhgmp", query[:, :, 2 * self.place :], self.elements(self.index))
        # One v at a time: all scores together are order times larger than any other tensor, and no cache holds them.
        weights = [
            (self.scale * (content + here + there)).flatten(3, 4).softmax(dim=3).sum(dim=2)
            for here, there in zip(place, element.unsqueeze(5), strict=True)
        ]
        return torch.stack(weights, dim=2)


def windows(field: Float[Tensor, "n heads dim *order side side"], window: int) -> Tensor:
    """Return the cells around every pixel [n, heads, dim, *order, cells, pixels]; zero outside the image."""
    patches = F.unfold(field.flatten(1, -3), window, padding=window // 2)
    return patches.view(*field.shape[:-2], window * window, -1)


def outside(field: Tensor, window: int) -> Float[Tensor, "cells pixels"]:
    """Return 0 for cells of the window inside the image and -inf for those outside."""
    inside = F.unfold(field.new_ones(1, 1, *field.shape[-2:]), window, padding=window // 2)[0]
    return torch.zeros_like(inside).masked_fill(inside == 0, -math.inf)
