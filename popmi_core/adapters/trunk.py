"""Where a backbone is cut in two: before the merge (once per rotated copy) and after it (once)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from popmi_core.errors import ModelError

# timm's backbones are typed by convention only (forward_features, forward_head, num_features).
Backbone = Any


def depth(backbone: Backbone) -> int:
    """Return L: the number of blocks of a ViT, of stages of any other backbone."""
    for name in ("blocks", "stages", "layers"):
        stages = getattr(backbone, name, None)
        if isinstance(stages, nn.Sequential | nn.ModuleList):
            return len(stages)
    return max(1, sum(name.startswith("layer") for name, _ in backbone.named_children()))


def width(backbone: Backbone) -> int:
    """Return the number of channels of the features that are merged."""
    return int(backbone.embed_dim if is_plain_vit(backbone) else backbone.num_features)


def choose_block(backbone: Backbone, merge_block: int | None) -> int:
    """Return the block after which copies are merged: as asked, else about L/4 (a ViT) or L (the others).

    Only a ViT's tokens keep the symmetry through the rest of the network; windows, strides and padding
    of the other families need not, so those merge on the last feature map.

    Raises:
        ModelError: If the backbone cannot be merged there.
    """
    layers, name = depth(backbone), type(backbone).__name__
    if not is_plain_vit(backbone):
        if merge_block not in (None, layers):
            raise ModelError(
                f"{name} cannot merge at block {merge_block}: only a plain ViT keeps the symmetry after an early "
                f"merge. Leave merge_block out, or set it to {layers} (its last feature map)."
            )
        return layers
    if merge_block is None:
        return max(1, round(layers / 4))
    if merge_block > layers:
        raise ModelError(f"{name} has {layers} blocks, merge_block is {merge_block}. Choose 0 to {layers}.")
    return merge_block


def is_plain_vit(backbone: Backbone) -> bool:
    """Return whether places enter only by patch kernel and position table: timm's VisionTransformer itself.

    Its subclasses and relatives (relative bias, rotary positions, windows) are not.
    """
    return type(backbone) is VisionTransformer


def front(backbone: Backbone, images: Float[Tensor, "n c side side"], block: int) -> Tensor:
    """Return the features that are merged: tokens after ``block`` blocks, or the last feature map."""
    if not is_plain_vit(backbone):
        features: Tensor = backbone.forward_features(images)
        return features
    tokens: Tensor = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(images))))
    for layer in backbone.blocks[:block]:
        tokens = layer(tokens)
    return tokens


def back(backbone: Backbone, features: Tensor, block: int) -> Float[Tensor, "n classes"]:
    """Return the logits of merged features."""
    if is_plain_vit(backbone):
        for layer in backbone.blocks[block:]:
            features = layer(features)
        features = backbone.norm(features)
    logits: Tensor = backbone.forward_head(features)
    return logits


def to_grid(backbone: Backbone, features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return features as [n, side, side, dim], and class and register tokens apart.

    Raises:
        ModelError: If the features are no square map.
    """
    prefix, grid = None, features
    if features.ndim == 3:
        extra = int(getattr(backbone, "num_prefix_tokens", 0))
        side = math.isqrt(max(0, features.shape[1] - extra))
        if side * side == features.shape[1] - extra:
            prefix, grid = features[:, :extra], features[:, extra:].reshape(len(features), side, side, -1)
    elif features.ndim == 4 and not _channels_last(backbone):
        grid = features.permute(0, 2, 3, 1)
    if grid.ndim != 4 or grid.shape[1] != grid.shape[2]:
        raise ModelError(
            f"{type(backbone).__name__} gives features of shape {tuple(features.shape)}, expected a square map. "
            "PREA cannot turn these; choose another backbone."
        )
    return grid, prefix


def from_grid(backbone: Backbone, grid: Tensor, prefix: Tensor | None) -> Tensor:
    """Undo ``to_grid``."""
    if prefix is not None:
        return torch.cat([prefix, grid.flatten(1, 2)], dim=1)
    return grid if _channels_last(backbone) else grid.permute(0, 3, 1, 2)


def _channels_last(backbone: Backbone) -> bool:
    return bool(getattr(backbone, "output_fmt", "NCHW") == "NHWC")
