"""ResNet and its relatives (ResNet-C/D/S/T, ResNeXt, SE): channels tied by skips, inner channels free.

All blocks of a stage add to one stream, so they share its order; what lies between two convolutions of a block has an
order of its own and, before ReLU, a scale. BatchNorm's running statistics move with their channels (re-estimate them
after averaging: Jordan et al. 2023, arXiv:2211.08403).
"""

from __future__ import annotations

from typing import Any

from timm.layers.blur_pool import BlurPool2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.channels import Channels, Layers

Part = tuple[str, Any]
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return isinstance(model, ResNet)


def describe(model: Any, build: Builder) -> None:
    """Describe a ResNet of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """
    layers = Layers(build)
    stream = _stem(model, layers)
    for stage, blocks in model.named_children():
        if not stage.startswith("layer"):
            continue
        for index, block in enumerate(blocks):
            stream = _block(block, f"{stage}.{index}", layers, stream)
    layers.head("fc", model.fc, stream)
    layers.done()


def _stem(model: Any, layers: Layers) -> Channels:
    """One convolution or three; then the pooling, which may be a convolution as well."""
    parts = [leaf for name in ("conv1", "bn1", "act1", "maxpool") for leaf in _leaves(name, getattr(model, name))]
    found = _convolutions(parts)
    reads: Channels | None = None
    for conv, norm, act in found:
        last = conv == found[-1][0]
        writes = layers.open("stem" if last else conv[0], layers.width(*conv), norm[1], act=None if last else act)
        layers.conv_norm(conv, norm, reads=reads, writes=writes)
        reads = writes
    if reads is None:
        layers.unknown("conv1", model.conv1, "a convolution")
    return reads


def _block(block: Any, name: str, layers: Layers, reads: Channels) -> Channels:
    if type(block) not in (BasicBlock, Bottleneck):
        layers.unknown(name, block, "timm's BasicBlock or Bottleneck")
    count = 2 if type(block) is BasicBlock else 3
    convs = [(f"{name}.conv{i}", getattr(block, f"conv{i}")) for i in range(1, count + 1)]
    norms = [(f"{name}.bn{i}", getattr(block, f"bn{i}")) for i in range(1, count + 1)]
    writes = reads
    if block.downsample is not None:
        writes = layers.open(name.removesuffix(".0"), layers.width(*convs[-1]), norms[-1][1])
        for conv, norm, _ in _convolutions(_leaves(f"{name}.downsample", block.downsample)):
            # The tap of conv1 sees the same input.
            layers.conv_norm(conv, norm, reads=reads, writes=writes, tap=False)
    inner = reads
    for place in range(count - 1):
        opened = _inner(block, place, convs, norms, layers)
        layers.conv_norm(convs[place], norms[place], reads=inner, writes=opened)
        inner = opened
    layers.conv_norm(convs[-1], norms[-1], reads=inner, writes=writes)
    layers.excite(f"{name}.se", block.se, writes)
    return writes


def _inner(block: Any, place: int, convs: list[Part], norms: list[Part], layers: Layers) -> Channels:
    """Open the channels after one convolution; those around a convolution with groups move as whole groups."""
    groups = layers.groups(*convs[1])
    width = layers.width(*convs[place])
    if groups == 1:
        return layers.open(convs[place][0], width, norms[place][1], act=getattr(block, f"act{place + 1}"))
    if place == 0:
        layers.build.note(f"{convs[1][0]}: groups of channels move as wholes, the order inside a group stays")
    return layers.open(convs[1][0], width, norms[place][1], spread=width // groups)


def _convolutions(parts: list[Part]) -> list[tuple[Part, Part, nn.Module | None]]:
    """Return every convolution with its norm and what follows that (pools have nothing to describe)."""
    rest = [part for part in parts if not isinstance(part[1], _POOLS)] + [("", None)]
    return [
        (part, rest[place + 1], rest[place + 2][1] if place + 2 < len(rest) else None)
        for place, part in enumerate(rest)
        if isinstance(part[1], nn.Conv2d)
    ]


def _leaves(name: str, module: nn.Module) -> list[Part]:
    if not isinstance(module, nn.Sequential):
        return [(name, module)]
    return [leaf for child, part in module.named_children() for leaf in _leaves(f"{name}.{child}", part)]
