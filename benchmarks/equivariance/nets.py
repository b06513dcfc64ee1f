"""Backbones of the study that timm and PREA know under timm's own class."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import ResNet

from popmi_core.models.presets import default_cfg
from popmi_core.models.small_nets import SmallResNet

_CONV = {"fixed_input_size": False, "first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {name: {**default_cfg(28), **_CONV} for name in ("study_resnet20", "study_resnet8")}
)


@register_model
def study_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return ``popmi_resnet20``, layer by layer."""
    return _of_timms_class("study_resnet20", pretrained, **kwargs)


@register_model
def study_resnet8(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return a ResNet of one block a stage (16, 32, 64 channels) behind a 3x3 stem that keeps the resolution."""
    return _of_timms_class("study_resnet8", pretrained, **{"layers": (1, 1, 1), "stem_stride": 1, **kwargs})


def _of_timms_class(name: str, pretrained: bool, **kwargs: Any) -> ResNet:
    """Return a small ResNet as an instance of timm's class, from which it differs in how it is set up alone.

    PREA merges early only in classes it knows.
    """
    model = build_model_with_cfg(SmallResNet, name, pretrained, **kwargs)
    model.__class__ = ResNet
    return model
