"""PREA, the plug-and-play rotation-equivariant adapter: orbit-merge at block k of a timm backbone.

Copies of the image, one per group element, run through the backbone's first k blocks; each is turned
back and they are averaged; the rest of the network runs once. After that a turn of the image only
swaps tokens, and nothing that follows can tell one place from another, so training, averaging over
sites and noise cannot break the symmetry. See docs/prea.md.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters import symmetric, trunk
from popmi_core.adapters.merge import OrbitMerge
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, point_group


class Prea(nn.Module):
    """A backbone (``backbone.``, timm's own names) with the adapter (``prea.``) at ``merge_block``."""

    orbits: Tensor | None

    def __init__(
        self, backbone: nn.Module, group: PointGroup, merge_block: int, adapter: OrbitMerge, *, frozen: bool
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.prea = adapter
        self.group = group
        self.merge_block = merge_block
        self.frozen = frozen
        self.pretrained_cfg = getattr(backbone, "pretrained_cfg", {})
        # Folded: the merge is already in the weights, and only one copy runs.
        self.folded = merge_block == 0
        self.register_buffer("orbits", symmetric.symmetrise(backbone, group) if self.folded else None, persistent=False)

    def forward(self, images: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits; they do not change when the images are turned by the group.

        Raises:
            ModelError: If the images are not square.
        """
        if images.shape[-2] != images.shape[-1]:
            raise ModelError(
                f"images are {images.shape[-2]}x{images.shape[-1]} pixels, expected square ones: quarter turns "
                "change the shape. Crop or pad them."
            )
        if self.folded:
            features = self.prea.refine(symmetric.embed(self.backbone, images, self.orbits))
            return trunk.back(self.backbone, features, 0)
        copies = trunk.front(self.backbone, self.prea.rotate(images), self.merge_block)
        grid, prefix = self.prea.merge(*trunk.to_grid(self.backbone, copies))
        prefix = None if prefix is None else self.prea.refine(prefix)
        features = trunk.from_grid(self.backbone, self.prea.refine(grid), prefix)
        return trunk.back(self.backbone, features, self.merge_block)

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's models do."""
        head: nn.Module = self.backbone.get_classifier()
        return head

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off; a frozen backbone stays in evaluation mode, so no statistic moves."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def attach(
    backbone: nn.Module,
    *,
    group: str,
    merge_block: int | None = None,
    weights: Literal["mean", "lambda"] = "mean",
    rank: int = 8,
    train: Literal["all", "adapter"] = "all",
    seed: int = 0,
) -> Prea:
    """Return a copy of ``backbone`` with PREA; with mean weights it computes the orbit-merge of the original.

    Args:
        backbone: A timm model that takes square images and gives logits.
        group: C4 (quarter turns) or D4 (quarter turns and mirror images); subgroups work too.
        merge_block: k; None is about a quarter of a ViT's blocks, and the last map of other families.
        weights: ``mean``, or ``lambda``: shares of the average are learned, per image.
        rank: Width of the per-token bottleneck.
        train: ``all``, or ``adapter``: only ``prea.`` and the head are trained.
        seed: Fixes the bottleneck's first layer.

    Raises:
        ModelError: If the group is not exact on a grid or the backbone cannot be merged at ``merge_block``.
    """
    symmetry, backbone = point_group(group), copy.deepcopy(backbone)
    block = trunk.choose_block(backbone, merge_block)
    if block == 0 and weights == "lambda":
        raise ModelError("merge_block 0 folds the merge into the weights: there is nothing to weight. Use 'mean'.")
    adapter = OrbitMerge(
        symmetry,
        trunk.width(backbone),
        rank,
        weighted=weights == "lambda",
        generator=torch.Generator().manual_seed(seed),
    ).to(next(backbone.parameters()))
    model = Prea(backbone, symmetry, block, adapter, frozen=train == "adapter")
    if model.frozen:
        model.backbone.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    return model.train(backbone.training)


def detach(model: Prea) -> nn.Module:
    """Return a copy of the backbone inside, as an ordinary timm model, all of it trainable again.

    At merge block 0 the symmetric weights are written out, so without its bottleneck nothing changes;
    at later blocks the merge is gone and with it the guarantee.
    """
    backbone: nn.Module = copy.deepcopy(model.backbone)
    if model.folded:
        symmetric.densify(backbone, model.orbits)
    return backbone.requires_grad_(True)
