"""ConvNeXt V1 and V2: one order of channels a stage, one of hidden units an MLP.

The depthwise convolution works channel by channel, so a stream may be permuted but not rotated; norms and LayerScale
follow. Global response normalisation (V2) compares hidden units with their mean, which no order changes.
"""

from __future__ import annotations

from typing import Any

from timm.layers.grn import GlobalResponseNorm
from timm.layers.mlp import GlobalResponseNormMlp, Mlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

from popmi_core.adapters.regular.layers import RegularConvNeXtBlock
from popmi_core.matching.builder import Builder
from popmi_core.matching.families.channels import Channels, Layers


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return isinstance(model, ConvNeXt)


def describe(model: Any, build: Builder) -> None:
    """Describe a ConvNeXt of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """
    layers = Layers(build)
    stream = _stem(model.stem, layers)
    for index, stage in enumerate(model.stages):
        name = f"stages.{index}"
        if isinstance(stage.downsample, nn.Sequential):
            norm, conv = stage.downsample
            layers.norm(f"{name}.downsample.0", norm, stream)
            writes = layers.open(name, layers.width(f"{name}.downsample.1", conv), norm)
            layers.conv(f"{name}.downsample.1", conv, reads=stream, writes=writes, normed=False)
            stream = writes
        for place, block in enumerate(stage.blocks):
            _block(block, f"{name}.blocks.{place}", layers, stream)
    layers.norm("norm_pre", model.norm_pre, stream)
    _head(model.head, layers, stream)
    layers.done()


def _stem(stem: nn.Sequential, layers: Layers) -> Channels:
    """A patch convolution, or two overlapping ones with a space between them; then a norm."""
    norm = stem[-1]
    convs = [(f"stem.{name}", part) for name, part in stem.named_children() if isinstance(part, nn.Conv2d)]
    reads: Channels | None = None
    for name, conv in convs[:-1]:
        writes = layers.open(name, layers.width(name, conv), nn.Identity(), act=stem[1])
        layers.conv(name, conv, reads=reads, writes=writes, normed=False)
        reads = writes
    name, conv = convs[-1]
    stream = layers.open("stem", layers.width(name, conv), norm)
    layers.conv_norm((name, conv), (f"stem.{len(stem) - 1}", norm), reads=reads, writes=stream)
    return stream


def _block(block: Any, name: str, layers: Layers, stream: Channels) -> None:
    if type(block) not in (ConvNeXtBlock, RegularConvNeXtBlock):
        layers.unknown(name, block, "timm's ConvNeXtBlock")
    layers.conv_norm((f"{name}.conv_dw", block.conv_dw), (f"{name}.norm", block.norm), reads=stream, writes=stream)
    mlp = block.mlp
    if type(mlp) not in (Mlp, GlobalResponseNormMlp):
        layers.unknown(f"{name}.mlp", mlp, "an MLP of timm")
    grn = getattr(mlp, "grn", None)
    first, second = f"{name}.mlp.fc1", f"{name}.mlp.fc2"
    width = layers.build.shape(f"{first}.weight")[0]
    hidden = layers.open(f"{name}.mlp", width, nn.Identity(), act=mlp.act if grn is None else None)
    layers.conv(first, mlp.fc1, reads=stream, writes=hidden, normed=False)
    if isinstance(grn, GlobalResponseNorm):
        for part in ("weight", "bias"):
            layers.build.axis(f"{name}.mlp.grn.{part}", 0, hidden.space)
    layers.conv(second, mlp.fc2, reads=hidden, writes=stream, normed=False)
    if block.gamma is not None:
        layers.build.axis(f"{name}.gamma", 0, stream.space)


def _head(head: Any, layers: Layers, stream: Channels) -> None:
    """Norm and classifier, perhaps with a hidden layer between them."""
    layers.norm("head.norm", getattr(head, "norm", nn.Identity()), stream)
    hidden: Any = getattr(head, "pre_logits", None)
    name = "head.pre_logits"
    if hasattr(hidden, "fc"):
        writes = layers.open(name, layers.width(f"{name}.fc", hidden.fc), nn.Identity(), act=hidden.act)
        layers.conv(f"{name}.fc", hidden.fc, reads=stream, writes=writes, normed=False)
        stream = writes
    layers.head("head.fc", head.fc, stream)
