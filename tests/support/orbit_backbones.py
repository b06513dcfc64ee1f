"""One small backbone of each kind that methods over an orbit must cut in two, in float64 and with random biases."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from popmi_core.invariance.method import MethodContext, Train

CLASSES = 5
ORBIT_METHODS = (
    "equitune-features",
    "equitune-logits",
    "lambda-equitune",
    "equizero",
    "equiattention",
    "posthoc-mean",
    "posthoc-max",
    "posthoc-sum",
    "posthoc-most-probable",
    "posthoc-most-certain",
    "posthoc-score",
    "posthoc-attention",
    "canonicalisation",
    "tta",
)


def _vit(**changes: object) -> nn.Module:
    return timm.create_model("popmi_vit_micro", num_classes=CLASSES, **changes)


def _swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=CLASSES
    )


# name -> (backbone, image size)
BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (_vit, 32),
    "vit with class token": (lambda: _vit(class_token=True, global_pool="token", reg_tokens=2), 32),
    # The only one here whose head tells places apart before it pools: without the inverse action it gives other logits.
    "vit with max pool": (lambda: _vit(class_token=True, global_pool="max", reg_tokens=2), 32),
    "swin": (_swin, 32),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=CLASSES), 40),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=CLASSES), 34),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=CLASSES), 40),
}


def shaken(model: nn.Module, seed: int = 1) -> nn.Module:
    """Add noise to every parameter: what starts at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def context(name: str = "vit", group: str = "C4", train: Train = "all", **changes: object) -> MethodContext:
    """Return what a method is built from, on the backbone ``name``."""
    make, size = BACKBONES[name]
    values: dict[str, object] = {"image_size": size, "in_chans": 3, "num_classes": CLASSES, "seed": 0, **changes}
    return MethodContext(backbone=lambda: make().double(), group=group, train=train, **values)  # type: ignore[arg-type]


def noise(size: int = 32, count: int = 3, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Return images of noise, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
