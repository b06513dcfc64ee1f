"""How timm's families are taken apart: a stem, blocks or stages, and what closes them before the head.

``forward_features`` is the stem, then every stage, then the closing; the parts call timm's own modules in timm's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# timm's backbones are typed by convention only.
Backbone = Any
Stages = list[tuple[str, nn.Module]]


@dataclass(frozen=True)
class Cut:
    """One family: ``stem`` (images -> features), ``stages`` (by name), ``closing``, and the width before a stage."""

    stem: Callable[[Backbone, Tensor], Tensor]
    stages: Callable[[Backbone], Stages]
    closing: Callable[[Backbone, Tensor], Tensor]
    width: Callable[[Backbone, int], int]


def cut_of(backbone: Backbone) -> Cut | None:
    """Return how the backbone is taken apart; None where it is not known (then only its last map can be merged)."""
    family = family_of(backbone)
    return None if family is None else _CUTS[family]


def family_of(backbone: Backbone) -> type[nn.Module] | None:
    """Return timm's class that the backbone is taken apart as.

    Of transformers only the class itself counts: a subclass may let places enter anywhere. Of convolutional networks a
    subclass that runs in the same order does too: places enter by its kernels all the same.
    """
    kind = type(backbone)
    if kind in _CUTS:
        return kind
    for family in (ConvNeXt, ResNet, EfficientNet, MobileNetV3):
        if isinstance(backbone, family) and kind.forward_features is family.forward_features:
            return family
    return None


def _children(name: str) -> Callable[[Backbone], Stages]:
    return lambda backbone: [(f"{name}.{child}", stage) for child, stage in getattr(backbone, name).named_children()]


def _resnet_stages(backbone: Backbone) -> Stages:
    return [(name, stage) for name, stage in backbone.named_children() if name.startswith("layer")]


def _vit_stem(backbone: Backbone, images: Tensor) -> Tensor:
    tokens: Tensor = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(images))))
    return tokens


def _in_turn(*names: str) -> Callable[[Backbone, Tensor], Tensor]:
    def run(backbone: Backbone, features: Tensor) -> Tensor:
        for name in names:
            features = getattr(backbone, name)(features)
        return features

    return run


def _first_conv(stages: Callable[[Backbone], Stages]) -> Callable[[Backbone, int], int]:
    """A stage of a convolutional network reads what its first convolution reads (an empty one: what the next reads)."""

    def width(backbone: Backbone, block: int) -> int:
        modules = (module for _, stage in stages(backbone)[block:] for module in stage.modules())
        found = (module.in_channels for module in modules if isinstance(module, nn.Conv2d))
        return next(found, int(backbone.num_features))

    return width


def _embed_dim(backbone: Backbone, block: int) -> int:
    del block
    return int(backbone.embed_dim)


def _swin_width(backbone: Backbone, block: int) -> int:
    # Patches are merged at the beginning of a stage.
    return int(backbone.layers[max(0, block - 1)].blocks[-1].norm1.normalized_shape[0])


_VIT = Cut(_vit_stem, _children("blocks"), _in_turn("norm"), _embed_dim)
_SWIN = Cut(_in_turn("patch_embed"), _children("layers"), _in_turn("norm"), _swin_width)
_CUTS: dict[type[nn.Module], Cut] = {
    VisionTransformer: _VIT,
    VisionTransformerDistilled: _VIT,
    SwinTransformer: _SWIN,
    SwinTransformerV2: _SWIN,
    ConvNeXt: Cut(_in_turn("stem"), _children("stages"), _in_turn("norm_pre"), _first_conv(_children("stages"))),
    ResNet: Cut(_in_turn("conv1", "bn1", "act1", "maxpool"), _resnet_stages, _in_turn(), _first_conv(_resnet_stages)),
    EfficientNet: Cut(
        _in_turn("conv_stem", "bn1"),
        _children("blocks"),
        _in_turn("conv_head", "bn2"),
        _first_conv(_children("blocks")),
    ),
    MobileNetV3: Cut(_in_turn("conv_stem", "bn1"), _children("blocks"), _in_turn(), _first_conv(_children("blocks"))),
}
