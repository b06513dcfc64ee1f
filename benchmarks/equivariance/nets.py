"""A backbone of the study that timm and PREA know under timm's own class."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import ResNet

from popmi_core.models.presets import default_cfg
from popmi_core.models.small_nets import SmallResNet

default_cfgs = generate_default_cfgs(
    {"study_resnet20": {**default_cfg(28), "fixed_input_size": False, "first_conv": "conv1", "classifier": "fc"}}
)


@register_model
def study_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return ``popmi_resnet20``, layer by layer, as an instance of timm's ResNet.

    PREA merges early only in classes it knows; ``SmallResNet`` differs from its parent in how it is set up alone.
    """
    model = build_model_with_cfg(SmallResNet, "study_resnet20", pretrained, **kwargs)
    model.__class__ = ResNet
    return model
