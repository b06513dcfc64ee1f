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
    """Row and column of v^-1 p -> one small network each -> [order, cells, 2 * dim] (linear, LayerNorm, Swish, linear)."""

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
        positions = self.positions.to(self.row[0].weight.dtype)
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
        n, _, *sides = images.shape
        query, key, value = self.qkv(images).view(n, 3, self.heads * self.dim, *sides).unbind(1)
        query = query.view(n, self.heads, self.dim, -1).transpose(2, 3)  # n, heads, pixels, dim
        key, value = (windows(part, self.window, self.heads) for part in (key, value))  # n, heads, pixels, cells, dim
        content = (key @ query.unsqueeze(-1)).squeeze(-1) + outside(images, self.window)
        scores = content.unsqueeze(-2) + torch.einsum("nhpc,vkc->nhpvk", query, self.code())
        found = (self.scale * scores).softmax(dim=-1) @ value  # n, heads, pixels, order, dim
        return self.out(found.permute(0, 1, 4, 3, 2).reshape(n, self.heads * self.dim, -1, *sides))


class GroupAttention(nn.Module):
    """Field on the group [n, channels, order, side, side] -> the same with ``out`` channels.

    Output at v = sum over the query's elements g of the attention of (x, g) over all (y, m) of the window, with
    scores q(x, g) . (k(y, m) + code(v^-1 (y - x), index(v, g, m))) / sqrt(dim) (GSA-Nets, equation 16). Cost per
    pixel and head: order^3 * window^2 scores.
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
        n, _, order, *sides = field.shape
        query, key, value = self.qkv(field).view(n, 3, self.heads * self.dim, order, *sides).unbind(1)
        query = query.view(n, self.heads, self.dim, order, -1).permute(0, 1, 4, 3, 2)  # n, heads, pixels, order, dim
        key, value = (windows(part.flatten(1, 2), self.window, self.heads, order) for part in (key, value))
        weights = self._weights(query, key, outside(field, self.window))
        found = weights @ value  # n, heads, pixels, order, dim
        return self.out(found.permute(0, 1, 4, 3, 2).reshape(n, self.heads * self.dim, order, *sides))

    def _weights(
        self,
        query: Float[Tensor, "n heads pixels order dim"],
        key: Float[Tensor, "n heads pixels keys dim"],
        mask: Float[Tensor, "pixels cells"],
    ) -> Float[Tensor, "n heads pixels order keys"]:
        """Return the attention of every v over the keys (element m slow, cell fast), summed over queries g."""
        order, cells = query.shape[3], mask.shape[-1]
        content = (query @ key.transpose(-1, -2)).unflatten(-1, (order, cells)) + mask[:, None, None]
        place = torch.einsum("nhpgc,vkc->nhpvgk", query[..., : 2 * self.place], self.code())
        element = torch.einsum("nhpgc,vgmc->nhpvgm", query[..., 2 * self.place :], self.elements(self.index))
        scores = content.unsqueeze(3) + place.unsqueeze(-2) + element.unsqueeze(-1)  # n, heads, pixels, v, g, m, cells
        return (self.scale * scores).flatten(-2).softmax(dim=-1).sum(dim=-2)


def windows(
    field: Float[Tensor, "n channels side side"], window: int, heads: int, order: int = 1
) -> Float[Tensor, "n heads pixels keys dim"]:
    """Return the window around every pixel; channels are (head, dim, element), keys (element, cell)."""
    cells = window * window
    patches = F.unfold(field, window, padding=window // 2)
    parted = patches.view(field.shape[0], heads, -1, order * cells, patches.shape[-1])  # n, heads, dim, keys, pixels
    return parted.permute(0, 1, 4, 3, 2).contiguous()


def outside(field: Tensor, window: int) -> Float[Tensor, "pixels cells"]:
    """Return 0 for cells of the window inside the image and -inf for those outside."""
    inside = F.unfold(field.new_ones(1, 1, *field.shape[-2:]), window, padding=window // 2)[0].T
    return torch.zeros_like(inside).masked_fill(inside == 0, -math.inf)
