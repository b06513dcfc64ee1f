"""Backbones of the study that timm and PREA know under timm's own class."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from popmi_core.models.presets import default_cfg
from popmi_core.models.small_nets import SmallResNet

_CONV = {"fixed_input_size": False, "first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {name: {**default_cfg(28), **_CONV} for name in ("study_resnet20", "study_resnet8")}
)


@register_model
def study_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return ``popmi_resnet20``, layer by layer, as an instance of timm's ResNet.

    PREA merges early only in classes it knows; ``SmallResNet`` differs from its parent in how it is set up alone.
    """
    model = build_model_with_cfg(SmallResNet, "study_resnet20", pretrained, **kwargs)
    model.__class__ = ResNet
    return model


@register_model
def study_resnet8(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return a ResNet of one block a stage (16, 32, 64 channels) behind a 3x3 stem that keeps the resolution."""
    shape = {"layers": (1, 1, 1), "channels": (16, 32, 64)}
    model: ResNet = build_model_with_cfg(_Unreduced, "study_resnet8", pretrained, **{**shape, **kwargs})
    model.__class__ = ResNet
    return model


class _Unreduced(ResNet):
    """timm's ResNet of three stages, its stem one convolution of stride 1, no max-pool."""

    def __init__(self, layers: Any, channels: tuple[int, ...], in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(BasicBlock, layers, channels=channels, in_chans=in_chans, **kwargs)
        stem = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        first = BasicBlock(channels[0], channels[0])
        for module in (stem, first):
            module.apply(_he_init)
        first.zero_init_last()
        replaced: dict[str, nn.Module] = {"conv1": stem, "bn1": nn.BatchNorm2d(channels[0]), "maxpool": nn.Identity()}
        replaced |= {"layer1": nn.Sequential(first), "layer4": nn.Sequential()}
        for name, module in replaced.items():
            self.add_module(name, module)
        self.feature_info[0]["num_chs"] = channels[0]


def _he_init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
