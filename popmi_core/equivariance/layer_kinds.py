"""What a layer is, in the words that LEE by layer is told in."""

from __future__ import annotations

from torch import nn

_NORMS = ("norm", "batchnorm", "frozenbatchnorm")
_ACTIVATIONS = ("relu", "gelu", "silu", "swish", "sigmoid", "tanh", "mish", "elu", "prelu", "hardswish", "gelutanh")
_POOLS = ("pool",)


def kind_of(name: str, module: nn.Module, has_parts: bool) -> str:
    """Return the kind of a layer, or of what a module with parts computes beside them.

    Args:
        name: The module's name in the model.
        module: The module.
        has_parts: Whether layers inside it are counted by themselves.
    """
    word = type(module).__name__.lower()
    if "attention" in word:
        return "attention"
    if "patch_embed" in name.split("."):
        return "norm" if "norm" in word else "patch embedding"
    if has_parts:
        return "between"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "downsampling" if max(module.stride) > 1 else _convolution(module)
    if any(part in word for part in _POOLS):
        return "pooling" if "adaptive" in word or "select" in word else "downsampling"
    if "merging" in word or "downsample" in name:
        return "downsampling"
    if any(part in word for part in _NORMS):
        # timm's BatchNormAct2d is a norm with its activation.
        return "norm and nonlinearity" if "act" in word else "norm"
    if any(word.startswith(part) for part in _ACTIVATIONS):
        return "nonlinearity"
    return "linear" if isinstance(module, nn.Linear) else "other"


def _convolution(module: nn.modules.conv._ConvNd) -> str:
    return "convolution" if max(module.kernel_size) > 1 else "linear"
