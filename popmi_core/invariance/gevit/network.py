"""The network of GSA-Nets and GE-ViT: lift, blocks of group attention, global maximum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.groups import point_group
from popmi_core.invariance.gevit.attention import GroupAttention, LiftAttention
from popmi_core.invariance.gevit.rules import Family, Rule
from popmi_core.invariance.network import InvariantNet, square_side, whiten


class AttentionBlock(nn.Module):
    """field + attention(field), then + mlp of it: the block of GSA-Nets, with a norm before and after attention.

    Norm is LayerNorm over channels, group and space together (one group of GroupNorm), nonlinearity Swish.
    """

    def __init__(self, attention: GroupAttention, channels: int, out: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.GroupNorm(1, channels), nn.SiLU(), attention, nn.GroupNorm(1, out), nn.SiLU())
        self.shortcut: nn.Module = nn.Identity() if channels == out else nn.Conv3d(channels, out, 1)
        hidden = max(1, out // 2)
        self.mlp = nn.Sequential(
            nn.Conv3d(out, hidden, 1),
            nn.GroupNorm(1, hidden),
            nn.SiLU(),
            nn.Conv3d(hidden, out, 1),
            nn.GroupNorm(1, out),
        )

    def forward(self, field: Float[Tensor, "n channels order side side"]) -> Float[Tensor, "n out order side side"]:
        """Return the block's output."""
        mixed = self.attention(field) + self.shortcut(field)
        return self.mlp(mixed) + mixed


class GroupTransformer(InvariantNet):
    """Equivariant attention network: images [n, in_chans, side, side] -> logits [n, num_classes].

    Guarantee: with ``rule="exact"`` logits do not change under ``group`` (C4 or D4, or a subgroup), in exact
    arithmetic, whatever the weights; with ``rule="published"`` as the released code (see ``rules``).
    Cost: order^3 * window^2 scores per pixel, head and layer; no cheaper than whole attention on 28 px.
    Source: Romero and Cordonnier (2021), "Group equivariant stand-alone self-attention for vision", arXiv:2010.00977
    (family ``gsa``); Xu et al. (2023), "E(2)-equivariant vision transformer", arXiv:2306.06722 (family ``ge-vit``).
    Differs from the released networks, to train on two cores: two heads instead of nine, window 3 instead of 5 to 9,
    2x2 maximum pooling from the lifting layer on instead of cropped borders, and the global maximum over group and
    space is taken of the features, with a LayerNorm, before the classes.

    Args:
        img_size: Side of the images, pixels; every pooling must halve it evenly.
        in_chans: Channels of the images.
        num_classes: Width of the logits; 0 for none.
        group: Name of a point group.
        family: Whose rule.
        rule: ``exact`` or ``published``.
        width: Channels of a field.
        depths: Blocks of each stage; there is a 2x2 pooling before every stage if ``pooling``.
        heads: Attention heads.
        window: Side of the neighbourhood, odd, pixels.
        pooling: Whether to pool; without it any size is exact.

    Raises:
        ModelError: If the size breaks exactness, the window is even, or the group is not exact on a grid.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 28,
        in_chans: int = 3,
        num_classes: int = 1000,
        group: str = "C4",
        family: Family = "ge-vit",
        rule: Rule = "exact",
        width: int = 20,
        depths: tuple[int, ...] = (1, 2),
        heads: int = 2,
        window: int = 3,
        pooling: bool = True,
    ) -> None:
        super().__init__()
        if window % 2 == 0:
            raise ModelError(
                f"{type(self).__name__}: window is {window}, expected an odd side with a pixel in its middle."
            )
        times = 2 ** len(depths) if pooling else 1
        self.times, self.group = times, point_group(group)
        self.img_size = (self._side(img_size),) * 2
        self.lift = LiftAttention(self.group, in_chans, width, heads=heads, window=window)
        self.lifted = nn.Sequential(nn.GroupNorm(1, width), nn.SiLU())
        options: dict[str, Any] = {"heads": heads, "window": window, "family": family, "rule": rule}
        widths = pairwise([width] * (1 + sum(depths)))
        blocks = [AttentionBlock(GroupAttention(self.group, i, o, **options), i, o) for i, o in widths]
        pool: nn.Module = nn.MaxPool3d((1, 2, 2)) if pooling else nn.Identity()
        stages, start = [], 0
        for depth in depths:
            stages.append(nn.Sequential(pool, *blocks[start : start + depth]))
            start += depth
        self.stages = nn.Sequential(*stages)
        whiten(self)
        self.norm = nn.LayerNorm(width)
        self.set_head(width, num_classes)

    def _side(self, img_size: int | tuple[int, int]) -> int:
        reason = f"pooling halves the side {self.times.bit_length() - 1} times, and an odd rest is cut off on one side"
        return square_side(type(self).__name__, img_size, lambda side: side % self.times == 0, reason)

    def forward_features(
        self, images: Float[Tensor, "n channels side side"]
    ) -> Float[Tensor, "n width order small small"]:
        """Return the last field on the group.

        Raises:
            ModelError: If the images' size breaks exactness.
        """
        self._side((images.shape[-2], images.shape[-1]))
        return self.stages(self.lifted(self.lift(images)))

    def pool(self, features: Float[Tensor, "n width order small small"]) -> Float[Tensor, "n width"]:
        """Return the maximum over group and space, normalised: a maximum of many values starts far from zero."""
        return self.norm(features.amax(dim=(2, 3, 4)))
