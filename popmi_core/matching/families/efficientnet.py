"""EfficientNet, MobileNet V1 to V3 and relatives: convolutions channel by channel between pointwise ones.

Blocks with a skip add to one stream and share its order. Inside a block the depthwise convolution keeps the order of
the expanded channels; squeeze and excitation has reduced channels of its own.
"""

from __future__ import annotations

from typing import Any

from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.channels import Channels, Layers


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return isinstance(model, EfficientNet | MobileNetV3)


def describe(model: Any, build: Builder) -> None:
    """Describe an EfficientNet or MobileNet of timm.

    Raises:
        ModelError: If it has a part that is not known here (mixed kernels, attention); the message names it.
    """
    layers = Layers(build)
    stream = layers.open("stem", layers.width("conv_stem", model.conv_stem), model.bn1)
    layers.conv_norm(("conv_stem", model.conv_stem), ("bn1", model.bn1), reads=None, writes=stream)
    for stage, blocks in model.blocks.named_children():
        for index, block in blocks.named_children():
            stream = _block(block, f"blocks.{stage}.{index}", layers, stream)
    _head(model, layers, stream)
    layers.done()


def _block(block: Any, name: str, layers: Layers, reads: Channels) -> Channels:
    """Describe one block and return the channels it writes."""
    if type(block) is ConvBnAct:
        last, norm = "conv", "bn1"
    elif type(block) is DepthwiseSeparableConv:
        last, norm = "conv_pw", "bn2"
    elif type(block) is InvertedResidual:
        last, norm = "conv_pwl", "bn3"
    elif type(block) is EdgeResidual:
        last, norm = "conv_pwl", "bn2"
    else:
        layers.unknown(name, block, "a block of EfficientNet or MobileNet V1 to V3")
    # Front to back: what a block writes is best told apart once its inner channels are in order.
    inner = _inside(block, name, layers, reads)
    writes = reads
    if not block.has_skip:
        writes = layers.open(name, layers.width(f"{name}.{last}", getattr(block, last)), getattr(block, norm))
    closing = (f"{name}.{last}", getattr(block, last)), (f"{name}.{norm}", getattr(block, norm))
    layers.conv_norm(*closing, reads=inner, writes=writes)
    return writes


def _inside(block: Any, name: str, layers: Layers, reads: Channels) -> Channels:
    """Describe what lies before a block's last convolution and return the channels that one reads."""
    inner = reads
    if getattr(block, "conv_s2d", None) is not None:
        inner = layers.open(f"{name}.conv_s2d", layers.width(f"{name}.conv_s2d", block.conv_s2d), block.bn_s2d)
        _named(block, name, ("conv_s2d", "bn_s2d"), layers, inner, reads)
    if type(block) is DepthwiseSeparableConv:
        _named(block, name, ("conv_dw", "bn1"), layers, inner, inner)
    elif type(block) is EdgeResidual:
        before, inner = inner, _expanded(block, name, "conv_exp", block.bn1, layers)
        _named(block, name, ("conv_exp", "bn1"), layers, inner, before)
    elif type(block) is InvertedResidual:
        before, inner = inner, _expanded(block, name, "conv_pw", block.bn2, layers)
        # The scale of a unit is that of the last norm: what the first one writes stays.
        _named(block, name, ("conv_pw", "bn1"), layers, inner, before, scales=False)
        _named(block, name, ("conv_dw", "bn2"), layers, inner, inner)
    layers.excite(f"{name}.se", getattr(block, "se", None), inner)
    return inner


def _expanded(block: Any, name: str, first: str, norm: Any, layers: Layers) -> Channels:
    """Open the expanded channels; those around a convolution with groups move as whole groups."""
    width = layers.width(f"{name}.{first}", getattr(block, first))
    groups = layers.groups(f"{name}.conv_dw", block.conv_dw) if type(block) is InvertedResidual else 1
    if 1 < groups < width:
        layers.build.note(f"{name}.conv_dw: groups of channels move as wholes, the order inside a group stays")
        return layers.open(f"{name}.expanded", width, norm, spread=width // groups)
    return layers.open(f"{name}.expanded", width, norm, act=getattr(norm, "act", None))


def _named(
    block: Any,
    name: str,
    parts: tuple[str, str],
    layers: Layers,
    writes: Channels,
    reads: Channels,
    *,
    scales: bool = True,
) -> None:
    conv, norm = ((f"{name}.{part}", getattr(block, part)) for part in parts)
    layers.conv_norm(conv, norm, reads=reads, writes=writes, scales=scales)


def _head(model: Any, layers: Layers, stream: Channels) -> None:
    """A last convolution, before the pooling (EfficientNet) or after it (MobileNetV3); then the classifier."""
    if not isinstance(model.conv_head, nn.Identity):
        norm = "bn2" if isinstance(model, EfficientNet) else "norm_head"
        layer = getattr(model, norm)
        plain = isinstance(layer, nn.Identity)
        act = model.act2 if plain else getattr(layer, "act", None)
        writes = layers.open("conv_head", layers.width("conv_head", model.conv_head), layer, act=act)
        layers.conv_norm(("conv_head", model.conv_head), (norm, layer), reads=stream, writes=writes)
        stream = writes
    layers.head("classifier", model.classifier, stream)
