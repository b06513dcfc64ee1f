"""The equivariant networks of the literature, registered with timm under their own names.

They are imported when they are built, not before: one needs escnn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from popmi_core.invariance.network import network_cfg

_SIZE = 28
_FIRST = {
    "popmi_z2_cnn": "layers.0",
    "popmi_p4_cnn": "layers.0",
    "popmi_p4m_cnn": "layers.0",
    "popmi_p4_densenet": "layers.0",
    "popmi_p4m_densenet": "layers.0",
    "popmi_c8_steerable": "layers.0",
    "popmi_gsa_p4": "lift.qkv",
    "popmi_ge_vit_p4": "lift.qkv",
    "popmi_ge_vit_p4m": "lift.qkv",
    "popmi_modern_ge_vit": "patches.encoder.0",
}

default_cfgs = generate_default_cfgs({name: network_cfg(_SIZE, first) for name, first in _FIRST.items()})


def _build(name: str, network: str, pretrained: bool, shape: dict[str, Any], given: dict[str, Any]) -> nn.Module:
    module, _, kind = network.rpartition(".")
    found = getattr(import_module(f"popmi_core.invariance.{module}"), kind)
    return build_model_with_cfg(found, name, pretrained, **{**shape, **given})


@register_model
def popmi_z2_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return Z2CNN: the plain twin of the p4 network, as many parameters, no guarantee."""
    return _build("popmi_z2_cnn", "gcnn.plain.GroupCnn", pretrained, {"group": "C1", "width": 20}, kwargs)


@register_model
def popmi_p4_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return P4CNN: exact under quarter turns."""
    return _build("popmi_p4_cnn", "gcnn.plain.GroupCnn", pretrained, {"group": "C4", "width": 10}, kwargs)


@register_model
def popmi_p4m_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return P4MCNN: exact under quarter turns and mirrors."""
    return _build("popmi_p4m_cnn", "gcnn.plain.GroupCnn", pretrained, {"group": "D4", "width": 7}, kwargs)


@register_model
def popmi_p4_densenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return the dense network on quarter turns."""
    return _build("popmi_p4_densenet", "gcnn.dense.GroupDenseNet", pretrained, {"group": "C4"}, kwargs)


@register_model
def popmi_p4m_densenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return the dense network on quarter turns and mirrors, about as many parameters as the p4 one."""
    shape = {"group": "D4", "growth": 4, "stem": 6}
    return _build("popmi_p4m_densenet", "gcnn.dense.GroupDenseNet", pretrained, shape, kwargs)


@register_model
def popmi_c8_steerable(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return a steerable network of eight rotations: exact at quarter turns, approximate in between; needs escnn."""
    return _build("popmi_c8_steerable", "gcnn.steerable.SteerableCnn", pretrained, {}, kwargs)


@register_model
def popmi_gsa_p4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return GSA-Nets' p4 network with its published position rule: *not* equivariant; ``rule="exact"`` is."""
    shape = {"group": "C4", "family": "gsa", "rule": "published"}
    return _build("popmi_gsa_p4", "gevit.network.GroupTransformer", pretrained, shape, kwargs)


@register_model
def popmi_ge_vit_p4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return GE-ViT on quarter turns, exact (as its published rule is)."""
    return _build("popmi_ge_vit_p4", "gevit.network.GroupTransformer", pretrained, {"group": "C4"}, kwargs)


@register_model
def popmi_ge_vit_p4m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return GE-ViT on quarter turns and mirrors with a correct rule; ``rule="published"`` has the released one."""
    return _build("popmi_ge_vit_p4m", "gevit.network.GroupTransformer", pretrained, {"group": "D4"}, kwargs)


@register_model
def popmi_modern_ge_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return GE-ViT on 49 invariant codes of 4x4 patches instead of 784 pixels, exact under quarter turns."""
    return _build("popmi_modern_ge_vit", "gevit.modern.ModernGeVit", pretrained, {}, kwargs)
