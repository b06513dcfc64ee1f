"""GE-ViT on patches instead of pixels: an invariant code of every patch makes a small image for it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.groups import PointGroup, act, point_group
from popmi_core.invariance.gevit.network import GroupTransformer
from popmi_core.invariance.gevit.rules import Rule
from popmi_core.invariance.network import InvariantNet, square_side


class InvariantPatches(nn.Module):
    """Images -> one code per patch that turning the patch leaves as it is: the orbit mean of a two-layer network.

    Turning the image then moves the codes and changes none: a scalar field on the grid of patches.
    """

    def __init__(self, group: PointGroup, patch_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.group, self.patch_size = group, patch_size
        hidden = 2 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(in_chans, hidden, patch_size, stride=patch_size), nn.GELU(), nn.Conv2d(hidden, width, 1)
        )

    def forward(self, images: Float[Tensor, "n channels side side"]) -> Float[Tensor, "n width grid grid"]:
        """Return the codes as a small image."""
        # Turning the whole image, and the codes back, turns every patch in its place.
        codes = [act(g.inverse(), self.encoder(act(g, images))) for g in self.group.elements]
        return torch.stack(codes).mean(dim=0)


class ModernGeVit(InvariantNet):
    """ "Modern equivariant ViT": 49 tokens of a 28-px image instead of 784 pixels, then GE-ViT on the 7x7 grid.

    Guarantee: logits do not change under ``group``, whatever the weights. Cost: |G| patch embeddings, then GE-ViT's
    attention on (side / patch_size)^2 tokens.
    Source: Bant et al. (2024), "E(2) Equivariant Vision Transformer", a course's report, on top of Xu et al. (2023).
    What the published code gets wrong: it averages a *linear* map of the turned patches, which is that map of the
    averaged patch, so nearly all of the patch is lost (4x4: 3 of 16 numbers under D4); here a nonlinearity stands
    between. And its GE-ViT is the released p4m one, which is not equivariant (``rules``).

    Args:
        img_size: Side of the images, pixels, a multiple of ``patch_size``.
        in_chans: Channels of the images.
        num_classes: Width of the logits; 0 for none.
        group: Name of a point group.
        rule: Of GE-ViT's positions.
        patch_size: Side of a patch, pixels.
        width: Channels of codes and fields.
        depth: Blocks of group attention.
        heads: Attention heads.
        window: Side of the neighbourhood, odd, patches.

    Raises:
        ModelError: If the patches do not divide the image.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 28,
        in_chans: int = 3,
        num_classes: int = 1000,
        group: str = "C4",
        rule: Rule = "exact",
        patch_size: int = 4,
        width: int = 32,
        depth: int = 3,
        heads: int = 2,
        window: int = 3,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        side = self._side(img_size)
        self.img_size = (side, side)
        self.patches = InvariantPatches(point_group(group), patch_size, in_chans, width)
        options: dict[str, Any] = {"group": group, "rule": rule, "heads": heads, "window": window, "pooling": False}
        grid = side // patch_size
        self.trunk = GroupTransformer(grid, width, 0, width=width, depths=(depth,), **options)
        self.set_head(width, num_classes)

    def _side(self, img_size: int | tuple[int, int]) -> int:
        reason = f"patches of {self.patch_size} pixels do not divide it"
        return square_side(type(self).__name__, img_size, lambda side: side % self.patch_size == 0, reason)

    def forward_features(
        self, images: Float[Tensor, "n channels side side"]
    ) -> Float[Tensor, "n width order grid grid"]:
        """Return the last field on the group.

        Raises:
            ModelError: If the patches do not divide the images.
        """
        self._side((images.shape[-2], images.shape[-1]))
        return self.trunk.forward_features(self.patches(images))

    def pool(self, features: Float[Tensor, "n width order grid grid"]) -> Float[Tensor, "n width"]:
        """Return the maximum over group and space, normalised."""
        return self.trunk.pool(features)
