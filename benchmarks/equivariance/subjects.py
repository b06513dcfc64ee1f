"""What the exactness table looks at: small nets of every family, with every design and every rival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

import popmi_core.models  # noqa: F401  (registers the presets with timm)
from popmi_core.adapters import attach
from popmi_core.adapters.geometry import check_geometry, stages_of
from popmi_core.adapters.trunk import attention_layers
from popmi_core.invariance.catalogue import method
from popmi_core.invariance.method import MethodContext

CLASSES = 5
_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_SWIN: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
# Family -> (timm name, arguments, image size).
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT": ("popmi_vit_micro", {}, 32),
    "ViT, class token and registers": (
        "popmi_vit_micro", {"class_token": True, "global_pool": "token", "reg_tokens": 2}, 32),
    "DeiT": ("deit_tiny_patch16_224", _VIT, 32),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", _VIT, 32),
    "DeiT III": ("deit3_small_patch16_224", _VIT, 32),
    "Swin": ("swin_tiny_patch4_window7_224", _SWIN, 32),
    "Swin V2": ("swinv2_tiny_window8_256", _SWIN, 32),
    "ConvNeXt": ("convnext_atto", _CONVNEXT, 64),
    "ResNet": ("resnet18", {"channels": (8, 8, 16, 16)}, 33),
    "ResNet-D, pooled shortcuts": ("test_resnet", {}, 33),
    "EfficientNet": ("test_efficientnet", {}, 33),
    "MobileNet V3": ("mobilenetv3_small_050", {}, 33),
}  # fmt: skip
# Where widths are whole regular fields and the size is exact: all but Swin, which has none.
REGULAR = {
    "C4": (
        "ViT",
        "ViT, class token and registers",
        "DeiT",
        "DeiT, distilled",
        "DeiT III",
        "ConvNeXt",
        "ResNet",
        "EfficientNet",
    ),
    "D4": ("ViT", "ViT, class token and registers", "DeiT", "DeiT, distilled", "DeiT III", "ConvNeXt", "ResNet"),
}
# Networks that are equivariant from their first layer on -> (arguments, image size, group, whether that is promised).
NETWORKS: dict[str, tuple[dict[str, Any], int, str, bool]] = {
    "popmi_octic_vit_micro": ({}, 32, "D4", True),
    "popmi_p4_cnn": ({}, 28, "C4", True),
    "popmi_p4m_cnn": ({}, 28, "D4", True),
    "popmi_p4_densenet": ({}, 28, "C4", True),
    "popmi_c8_steerable": ({}, 28, "C4", True),
    "popmi_gsa_p4": ({}, 28, "C4", False),
    "popmi_ge_vit_p4": ({}, 28, "C4", True),
    "popmi_ge_vit_p4m": ({}, 28, "D4", True),
    "popmi_modern_ge_vit": ({}, 28, "C4", True),
}
# Named as the table says it -> (timm name, arguments, group, why nothing is promised).
UNPROMISED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "popmi_c8_steerable, turns of 45 degrees": ("popmi_c8_steerable", {}, "C8", "eighth turns interpolate"),
    "GE-ViT p4m, as published": ("popmi_ge_vit_p4m", {"rule": "published"}, "D4", "the published rule"),
}
RIVALS = (
    "equitune-logits", "equitune-features", "lambda-equitune", "equizero", "equiattention", "posthoc-mean",
    "posthoc-max", "posthoc-sum", "posthoc-most-probable", "posthoc-most-certain", "posthoc-score",
    "posthoc-attention", "canonicalisation", "tta",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One row of the table.

    Attributes:
        family: Of the backbone, or the network.
        design: What was made of it.
        group: What it is held against: C4, D4 (exact moves of pixels) or C8 (which interpolates).
        image_size: Pixels per side.
        promise: () -> whether exactness is promised, and if not, why.
        make: Seed -> the model, in evaluation mode.
    """

    family: str
    design: str
    group: str
    image_size: int
    promise: Callable[[], tuple[bool, str]]
    make: Callable[[int], nn.Module]


def exact() -> tuple[bool, str]:
    """Return the promise of what is exact by construction."""
    return True, ""


def no_promise(why: str) -> Callable[[], tuple[bool, str]]:
    """Return the promise of what is exact by nothing."""
    return lambda: (False, why)


def plain_net(family: str, seed: int) -> nn.Module:
    """Return a family's small net, its weights drawn by the seed and a little larger than timm draws them."""
    name, arguments, _ = FAMILIES[family]
    return seeded(name, arguments, seed)


def seeded(name: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    """Return timm's model by name, its weights drawn by the seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, num_classes=CLASSES, **arguments)
        # Layers that start at zero or one (norms, biases, positions) would hide what training shows.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def subjects() -> Iterator[Subject]:
    """Yield every row, families first."""
    for family, (_, _, size) in FAMILIES.items():
        yield Subject(family, "plain", "C4", size, no_promise("no adapter"), lambda seed, f=family: plain_net(f, seed))
        for group in ("C4", "D4"):
            yield from designs(family, group)
    for name in RIVALS:
        for group in ("C4", "D4"):
            yield rival(name, group)
    for name, (arguments, size, group, promised) in NETWORKS.items():
        promise = exact if promised else no_promise("the published rule")
        yield Subject(name, "-", group, size, promise, lambda seed, n=name, a=arguments: seeded(n, a, seed))
    for said, (name, arguments, group, why) in UNPROMISED.items():
        yield Subject(said, "-", group, 28, no_promise(why), lambda seed, n=name, a=arguments: seeded(n, a, seed))


def designs(family: str, group: str) -> Iterator[Subject]:
    """Yield PREA at every k with every adapter, with lambda weights wherever copies are merged, and regular fields."""
    backbone = plain_net(family, 0)
    for block in range(len(stages_of(backbone)) + 1):
        yield adapted(family, group, block)
        for adapters in ("none", "lifted-conv", "lora", "lifted-conv+lora"):
            if "lora" not in adapters or attention_layers(backbone, block):
                yield adapted(family, group, block, adapters=adapters)
        if block:
            yield adapted(family, group, block, weights="lambda")
    if family in REGULAR[group]:
        yield adapted(family, group, 0, fields="regular")


def adapted(family: str, group: str, block: int, **options: Any) -> Subject:
    """Return PREA with these options; exactness is promised where the geometry checker says so."""
    size = FAMILIES[family][2]
    said = "".join(f", {value}" for value in options.values())

    def make(seed: int) -> nn.Module:
        model = attach(
            plain_net(family, seed), group=group, merge_block=block, seed=seed, image_size=size,
            allow_approximate=True, **options,
        )  # fmt: skip
        return model.eval()

    def promise() -> tuple[bool, str]:
        found = check_geometry(plain_net(family, 0), size, group=group, merge_block=block, measure=False)
        return found.verdict == "exact", "; ".join(f"{reason.module}: {reason.what}" for reason in found.reasons[:1])

    design = f"k = {block}{said}" if "fields" not in options else "regular fields"
    return Subject(family, design, group, size, promise, make)


def rival(name: str, group: str) -> Subject:
    """Return a method of the catalogue around a small ViT."""

    def make(seed: int) -> nn.Module:
        context = MethodContext(lambda: plain_net("ViT", seed), group, 32, 3, CLASSES, seed)
        return method(name).build(context).eval()

    return Subject("ViT", name, group, 32, exact, make)
