"""Where a backbone is cut in two: before the merge (once per rotated copy) and after it (once)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from popmi_core.adapters.cuts import cut_of
from popmi_core.errors import ModelError

# timm's backbones are typed by convention only (forward_features, forward_head, num_features).
Backbone = Any
Between = Callable[[int, Tensor], Tensor]
_TIMM = ("num_features", "forward_features", "forward_head", "get_classifier")


def depth(backbone: Backbone) -> int:
    """Return L: the number of blocks of a ViT, of stages of any other backbone."""
    for name in ("blocks", "stages", "layers"):
        stages = getattr(backbone, name, None)
        if isinstance(stages, nn.Sequential | nn.ModuleList):
            return len(stages)
    return max(1, sum(name.startswith("layer") for name, _ in backbone.named_children()))


def width(backbone: Backbone, block: int | None = None) -> int:
    """Return the number of channels of the features after ``block`` blocks or stages (None: after all)."""
    cut = cut_of(backbone)
    if cut is None or block is None or block == depth(backbone):
        return int(backbone.embed_dim if is_plain_vit(backbone) else backbone.num_features)
    return cut.width(backbone, block)


def choose_block(backbone: Backbone, merge_block: int | None) -> int:
    """Return the block after which copies are merged: as asked, else about L/4 (a ViT) or L (the others).

    After an early merge windows, strides and kernels have to keep the symmetry. ViT's tokens do at every image size,
    the other families at some only, so that for them L is what always works.

    Raises:
        ModelError: If the backbone cannot be merged there.
    """
    layers, name = depth(backbone), type(backbone).__name__
    if merge_block is None:
        return max(1, round(layers / 4)) if is_plain_vit(backbone) else layers
    if not 0 <= merge_block <= layers:
        raise ModelError(f"{name} has {layers} blocks, merge_block is {merge_block}. Choose 0 to {layers}.")
    if problem := unmergeable(backbone, merge_block):
        raise ModelError(f"{name} cannot merge at block {merge_block}: {problem}.")
    return merge_block


def require_own(backbone: Backbone) -> None:
    """Refuse what is no plain timm backbone.

    Raises:
        ModelError: If it is not (see ``foreign``).
    """
    if problem := foreign(backbone):
        raise ModelError(problem)


def foreign(backbone: Backbone) -> str | None:
    """Return why PREA cannot be put around a model at all, in a sentence; None for a timm backbone."""
    name = type(backbone).__name__
    if hasattr(backbone, "prea"):
        return f"{name} has PREA inside already. Take the backbone out first (popmi_core.adapters.detach)."
    if lacking := [part for part in _TIMM if not hasattr(backbone, part)]:
        return f"{name} has no {', '.join(lacking)}, expected a timm backbone (timm.create_model). Take timm's own."
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple | list) and len(set(patch)) > 1:
        return f"{name} has patches of {patch[0]}x{patch[1]} pixels, expected square ones: a turn swaps their sides."
    return None


def unmergeable(backbone: Backbone, block: int) -> str | None:
    """Return why copies cannot be merged after ``block`` blocks or stages whatever the image size; None if they can."""
    if cut_of(backbone) is None and block != depth(backbone):
        return (
            "it is not known where places enter it, so nothing can be tied after an early merge. Leave merge_block "
            f"out, or set it to {depth(backbone)} (its last feature map)"
        )
    if block == 0 and hasattr(getattr(backbone, "patch_embed", None), "backbone"):
        return "its patches come from a network of their own, which is not tied. Set merge_block to 1 or more"
    return None


def is_plain_vit(backbone: Backbone) -> bool:
    """Whether places enter only by patch kernel and position table: timm's VisionTransformer itself.

    Its subclasses and relatives (relative bias, rotary positions, windows) are not; it is merged before its last norm,
    all others after theirs.
    """
    return type(backbone) is VisionTransformer


def merges_last_map(backbone: Backbone, block: int) -> bool:
    """Whether ``block`` is the end of a backbone whose finished features are merged (behind its last norm)."""
    return block == depth(backbone) and not is_plain_vit(backbone)


def front(backbone: Backbone, images: Float[Tensor, "n c side side"], block: int) -> Tensor:
    """Return the features that are merged: those after ``block`` blocks or stages, or the last feature map."""
    cut = cut_of(backbone)
    if cut is None or merges_last_map(backbone, block):
        features: Tensor = backbone.forward_features(images)
        return features
    features = cut.stem(backbone, images)
    for _, stage in cut.stages(backbone)[:block]:
        features = stage(features)
    return features


def back(
    backbone: Backbone, features: Tensor, block: int, between: Between = lambda _, features: features
) -> Float[Tensor, "n classes"]:
    """Return the logits of merged features; ``between(i, features)`` is put before block or stage i, once at least."""
    cut = cut_of(backbone)
    if cut is None or merges_last_map(backbone, block):
        features = between(block, features)
    else:
        for index, (_, stage) in list(enumerate(cut.stages(backbone)))[block:]:
            features = stage(between(index, features))
        features = cut.closing(backbone, between(block, features) if block == depth(backbone) else features)
    logits: Tensor = backbone.forward_head(features)
    return logits


def attention_layers(backbone: Backbone, block: int) -> list[str]:
    """Return the names of the attention's linear layers in the blocks or stages after ``block``."""
    cut = cut_of(backbone)
    stages = [] if cut is None else cut.stages(backbone)[block:]
    return [
        name
        for path, stage in stages
        for name, module in stage.named_modules(prefix=path)
        if type(module) is nn.Linear and name.endswith((".attn.qkv", ".attn.proj"))
    ]


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
            prefix, grid = features[:, :extra], features[:, extra:].reshape(features.shape[0], side, side, -1)
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
