"""Make a timm backbone compute in regular fields, in place, and write it out dense again.

Every layer keeps its name, place and width. The first convolution lifts pixels to fields, the classifiers read fields
and write what does not turn, and all between commutes with the group: the network costs what it cost, and its linear
layers have 1 / |G| of their numbers. It is exact whatever these are, as pointwise nonlinearities, attention whose heads
hold whole fields, and means over places and channels commute with moves of channels. For training from scratch: of
pretrained weights only the first channel of each field is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from timm.layers.blur_pool import BlurPool2d
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from popmi_core.adapters.cuts import family_of
from popmi_core.adapters.regular import layers, tokens
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup
from popmi_core.groups.convolution import lifting_kernel, regular_kernel

Backbone = Any
_VITS = (VisionTransformer, VisionTransformerDistilled)
_SWINS = (SwinTransformer, SwinTransformerV2)


def is_regular(module: nn.Module) -> bool:
    """Whether this layer is one between regular fields."""
    return type(module) in layers.PLAIN


def holds_channels(module: nn.Module) -> bool:
    """Whether a module has numbers of its own that may differ by channel; a filter that blurs all alike has none."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.ndim for tensor in own) and not isinstance(module, BlurPool2d)


def together(module: Any) -> Iterator[tuple[str, int]]:
    """Yield how many channels a module takes together, and as what: these have to be whole fields."""
    for name in ("head_dim", "dim_head"):
        if isinstance(getattr(module, name, None), int):
            yield "channels of a head", getattr(module, name)
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        yield "channels of a norm's group", module.num_channels // module.num_groups


def make_regular(backbone: Backbone, group: PointGroup) -> Int[Tensor, "cells order"] | None:
    """Replace every layer by one between regular fields, in place; a field starts from its first channel's numbers.

    Returns:
        What ``tokens.embed`` needs, where the backbone has a table of positions.

    Raises:
        ModelError: If the family is not known, a width is not whole fields, or a layer has weights of another kind.
    """
    family = family_of(backbone)
    if family is None or family in _SWINS:
        raise ModelError(
            f"regular fields are not known in {type(backbone).__name__}, only in ViT, DeiT, ResNet, ConvNeXt, "
            "EfficientNet and MobileNet. Choose one of these, or trivial fields."
        )
    heads = _classifiers(backbone)
    stem = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    for name, module in list(backbone.named_modules()):
        if module in heads:
            _read(name, module, group)
        elif isinstance(module, nn.Conv2d | nn.Linear) and type(module) in layers.BETWEEN:
            _free(name, module, group, reads=module is not stem)
        elif type(module) in layers.BETWEEN:
            _share(name, module, group)
        elif module is not backbone and holds_channels(module):
            raise ModelError(
                f"'{name}': {type(module).__name__} is not known between regular fields. Choose a backbone without it, "
                "or trivial fields."
            )
        for what, channels in together(module):
            _require_whole(name, what, channels, group)
    if family not in _VITS:
        return None
    return tokens.share_tokens(backbone, group, _grid_side(backbone))


def make_dense(backbone: Backbone, group: PointGroup, index: Int[Tensor, "cells order"] | None) -> None:
    """Undo ``make_regular`` in place: timm's own layers and shapes, the same function in evaluation mode.

    Trained on, it does not stay equivariant.
    """
    if isinstance(backbone, _VITS):
        tokens.dense_tokens(backbone, len(group), index)
    for module in list(backbone.modules()):
        kind = layers.PLAIN.get(type(module))
        if kind is None:
            continue
        layer: Any = module
        shared = isinstance(layer, layers.SharedStatistics)
        for name, stored in list(layer.named_parameters(recurse=False)):
            dense = layers.per_channel(stored, len(group)) if shared else getattr(layer, name)
            layer._parameters[name] = nn.Parameter(dense.detach().clone(), requires_grad=stored.requires_grad)
        for name, stored in list(layer.named_buffers(recurse=False)):
            if name == "index":
                delattr(layer, name)
            elif stored.ndim:
                layer._buffers[name] = layers.per_channel(stored, len(group)).clone()
        if shared:
            layer.num_features *= len(group)
        del layer.order
        layer.__class__ = kind


def _classifiers(backbone: Backbone) -> set[nn.Module]:
    found = backbone.get_classifier()
    return set(found) if isinstance(found, tuple) else {found}


def _grid_side(vit: Backbone) -> int:
    if type(vit.patch_embed) is not PatchEmbed or vit.dynamic_img_size:
        raise ModelError(
            f"regular fields need patches of one image size, got {type(vit.patch_embed).__name__}"
            f"{' with dynamic_img_size' if vit.dynamic_img_size else ''}. Choose a plain ViT, or trivial fields."
        )
    side: int = vit.patch_embed.proj.kernel_size[0]
    height, width = vit.patch_embed.img_size
    if height != width or height % side or vit.patch_embed.proj.stride != (side, side):
        raise ModelError(
            f"regular fields need square patches that tile a square image: {side} pixels do not tile {height}x{width}. "
            "Change image_size or patch_size."
        )
    return int(height // side)


def _require_whole(name: str, what: str, channels: int, group: PointGroup) -> None:
    if channels % len(group):
        raise ModelError(
            f"'{name}': {channels} {what}, expected whole regular fields of {len(group)} ({group.name}). Choose a "
            "backbone whose widths are multiples of that, a smaller group, or trivial fields."
        )


def _free(name: str, module: Any, group: PointGroup, *, reads: bool) -> None:
    """Keep the kernel of each field's first channel; those of the others are its turns, fields read permuted."""
    weight: Tensor = module.weight.detach()
    parts = getattr(module, "groups", 1)
    # Depthwise kernels read one channel of a field and write the same: as pixels, they are only turned.
    fields = reads and not (parts > 1 and weight.shape[1] == 1 and len(weight) == parts)
    _require_whole(name, "channels written", len(weight) // parts if fields else len(weight), group)
    if fields:
        _require_whole(name, "channels read", weight.shape[1], group)
    square = weight.shape[2:] or (1, 1)
    if square[0] != square[1]:
        raise ModelError(
            f"'{name}': a kernel of {square[0]}x{square[1]} pixels treats rows and columns differently, expected a "
            "square one. Choose a backbone without it."
        )
    numbers = torch.arange(weight[0].numel()).view(1, weight.shape[1], *square)
    turned = regular_kernel(numbers.unflatten(1, (-1, len(group))), group) if fields else lifting_kernel(numbers, group)
    _store(module, group)
    module.register_buffer("index", turned.flatten().to(weight.device), persistent=False)


def _read(name: str, module: Any, group: PointGroup) -> None:
    if type(module) not in layers.READING:
        raise ModelError(
            f"'{name}': a classifier of kind {type(module).__name__}, expected a linear layer. Give the model its "
            "classes (num_classes), or a linear head."
        )
    _require_whole(name, "channels read", module.in_features, group)
    # Pooled channels of a field are about alike: |G| of them times the mean spread logits as the dense weights did.
    mean = module.weight.detach().unflatten(1, (-1, len(group))).mean(dim=2)
    module.weight = nn.Parameter(mean, requires_grad=module.weight.requires_grad)
    module.order = len(group)
    module.__class__ = layers.READING[type(module)]


def _share(name: str, module: Any, group: PointGroup) -> None:
    for part, value in module.named_parameters(recurse=False):
        _require_whole(f"{name}.{part}", "channels", len(value), group)
    _store(module, group)
    for part, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            module._buffers[part] = buffer[:: len(group)].clone()
    if hasattr(module, "num_features"):
        if module.running_mean is None:
            raise ModelError(f"'{name}': BatchNorm without running statistics is no layer that folds. Track them.")
        module.num_features //= len(group)


def _store(module: Any, group: PointGroup) -> None:
    for part, value in list(module.named_parameters(recurse=False)):
        first = value.detach()[:: len(group)].clone()
        module._parameters[part] = nn.Parameter(first, requires_grad=value.requires_grad)
    module.order = len(group)
    module.__class__ = layers.BETWEEN[type(module)]
