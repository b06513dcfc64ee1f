"""In which space the features lie that PREA merges and adapts, and its lifted convolutions, in the words of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from popmi_core.adapters import Prea, trunk
from popmi_core.adapters.cuts import family_of
from popmi_core.matching.builder import Builder


def features_space(model: Prea, build: Builder, block: int) -> str | None:
    """Return the space of the features after ``block`` blocks or stages; None where their basis has to stay."""
    backbone = model.backbone
    if trunk.merges_last_map(backbone, block):
        # MobileNetV3 has one more layer between the last map's mean and the classifier.
        after = ("backbone.conv_head",) if isinstance(backbone, MobileNetV3) else classifiers_of(model)
        return _one({(f"{name}.weight", 1) for name in after}, build)
    family = family_of(backbone)
    if family is None:
        return None
    name, axis = _WRITERS[family](backbone, block)
    return _one({(f"backbone.{name}", axis)}, build)


def classifiers_of(model: Prea) -> tuple[str, ...]:
    """Return the names of the last layers."""
    given: Any = model.get_classifier()
    wanted = set(given) if isinstance(given, tuple) else {given}
    return tuple(name for name, module in model.named_modules() if module in wanted)


def lifted(name: str, build: Builder, *, stream: str | None) -> None:
    """Describe a lifted convolution on a stream (None: of a fixed basis).

    What ``down`` writes passes no nonlinearity, so any invertible map may act there, as inside a low-rank adapter; the
    convolution's fields may change places. Turning the kernels of a single field would keep the function too, but it is
    no move of channels and is left out: sites that start alike do not differ by it.
    """
    rank = build.shape(f"{name}.conv.weight")[0]
    low = build.space(f"{name}.low", "heads", 1, inner=rank, maps={"factor": "linear"})
    for part in ("weight", "bias"):
        build.axis(f"{name}.down.{part}", 0, low, part="factor")
    build.tap(f"{name}.down", "output", -1, low, part="factor")
    if stream is not None:
        build.axis(f"{name}.down.weight", 1, stream, dual=True)
    build.space(f"{name}.fields", "permutation", rank)
    build.axis(f"{name}.conv.weight", 1, low, part="factor", dual=True)
    build.linear(f"{name}.conv", writes=f"{name}.fields")
    build.linear(f"{name}.up", reads=f"{name}.fields", writes=stream)
    build.tap(f"{name}.up", "input", -1, f"{name}.fields")


def _one(places: set[tuple[str, int]], build: Builder) -> str | None:
    found = {axis.space for axis in build.axes if (axis.tensor, axis.axis) in places}
    return found.pop() if len(found) == 1 else None


def _vit(backbone: Any, block: int) -> tuple[str, int]:
    del backbone, block
    return "patch_embed.proj.weight", 0


def _swin(backbone: Any, block: int) -> tuple[str, int]:
    last = len(backbone.layers[block - 1].blocks) - 1
    return ("patch_embed.proj.weight" if block == 0 else f"layers.{block - 1}.blocks.{last}.mlp.fc2.weight"), 0


def _convnext(backbone: Any, block: int) -> tuple[str, int]:
    if block == 0:
        convs = [name for name, part in backbone.stem.named_children() if isinstance(part, nn.Conv2d)]
        return f"stem.{convs[-1]}.weight", 0
    last = len(backbone.stages[block - 1].blocks) - 1
    return f"stages.{block - 1}.blocks.{last}.mlp.fc2.weight", 0


def _resnet(backbone: Any, block: int) -> tuple[str, int]:
    # The first convolution of a stage reads what the stage before wrote; empty stages pass it on.
    layers = [name for name, _ in backbone.named_children() if name.startswith("layer")]
    later = [name for name in layers[block:] if len(backbone.get_submodule(name))]
    return (f"{later[0]}.0.conv1.weight" if later else "fc.weight"), 1


def _efficientnet(backbone: Any, block: int) -> tuple[str, int]:
    if block == 0:
        return "conv_stem.weight", 0
    last = len(backbone.blocks[block - 1]) - 1
    names = [name for name, _ in backbone.blocks[block - 1][last].named_children()]
    norm = max(name for name in names if name.startswith("bn") and name[2:].isdigit())
    return f"blocks.{block - 1}.{last}.{norm}.weight", 0


_WRITERS: dict[type[nn.Module], Callable[[Any, int], tuple[str, int]]] = {
    VisionTransformer: _vit,
    VisionTransformerDistilled: _vit,
    SwinTransformer: _swin,
    SwinTransformerV2: _swin,
    ConvNeXt: _convnext,
    ResNet: _resnet,
    EfficientNet: _efficientnet,
    MobileNetV3: _efficientnet,
}
