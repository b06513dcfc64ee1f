"""Octic transformers registered with timm, each of the shape of a plain ViT."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from popmi_core.models.octic.vit import OcticVit
from popmi_core.models.presets import default_cfg

# name -> pixels a side
SIZES = {
    "popmi_octic_vit_nano": 64,
    "popmi_octic_vit_micro": 32,
    "popmi_octic_vit_28": 28,
    "popmi_octic_vit_small": 224,
}

default_cfgs = generate_default_cfgs({name: default_cfg(size) for name, size in SIZES.items()})


def create_octic(name: str, pretrained: bool, **kwargs: Any) -> OcticVit:
    """Build the registered octic transformer ``name`` the way timm builds its own."""
    model = build_model_with_cfg(OcticVit, name, pretrained, **kwargs)
    assert isinstance(model, OcticVit)
    return model


@register_model
def popmi_octic_vit_nano(pretrained: bool = False, **kwargs: Any) -> OcticVit:
    """Return the octic twin of ``popmi_vit_nano``: 64x64 images, width 96."""
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4}
    return create_octic("popmi_octic_vit_nano", pretrained, **{**shape, **kwargs})


@register_model
def popmi_octic_vit_micro(pretrained: bool = False, **kwargs: Any) -> OcticVit:
    """Return the octic twin of ``popmi_vit_micro``: 32x32 images, width 32, for tests."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return create_octic("popmi_octic_vit_micro", pretrained, **{**shape, **kwargs})


@register_model
def popmi_octic_vit_28(pretrained: bool = False, **kwargs: Any) -> OcticVit:
    """Return the octic twin of ``popmi_vit_128``: 28x28 images, 7x7 patches, width 128, a class token."""
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 128, "depth": 3, "num_heads": 4}
    pooled = {"class_token": True, "global_pool": "token"}
    return create_octic("popmi_octic_vit_28", pretrained, **{**shape, **pooled, **kwargs})


@register_model
def popmi_octic_vit_small(pretrained: bool = False, **kwargs: Any) -> OcticVit:
    """Return the octic twin of ViT-S/16: 224x224 images, width 384, twelve blocks."""
    shape = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    pooled = {"class_token": True, "global_pool": "token"}
    return create_octic("popmi_octic_vit_small", pretrained, **{**shape, **pooled, **kwargs})
