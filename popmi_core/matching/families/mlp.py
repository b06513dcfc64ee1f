"""MLPs and other plain chains of layers: one order of units after every layer but the last, and a scale before ReLU.

``describe`` takes POPMI's MLP and any ``nn.Sequential`` of convolutions, linear layers, norms, activations and pools.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from popmi_core.adapters.lora import LoraLinear
from popmi_core.matching.builder import Builder
from popmi_core.matching.families.channels import Channels, Layers, passes_scale
from popmi_core.models.small_nets import Mlp

Leaf = tuple[str, Any]
Open = Callable[[Leaf, nn.Module, nn.Module | None], Channels]

_WISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid)
_HARD = (nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_EASY = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, *_POOLS)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return isinstance(model, Mlp | nn.Sequential)


def describe(model: nn.Module, build: Builder) -> None:
    """Describe a chain of layers.

    Raises:
        ModelError: If it has a layer that is not known here; the message names it.
    """
    layers = Layers(build)

    def opened(layer: Leaf, norm: nn.Module, act: nn.Module | None) -> Channels:
        return layers.open(layer[0], layers.width(*layer), norm, act=act)

    chain(model, layers, opened)
    layers.done()


def chain(model: nn.Module, layers: Layers, opened: Open) -> None:
    """Describe layers that run in the order of their names; ``opened`` declares what a layer writes.

    Raises:
        ModelError: If the model has no layer with weights, or a layer that mixes its units in another way.
    """
    leaves = _leaves("", model)
    places = [place for place, (_, layer) in enumerate(leaves) if isinstance(layer, nn.Conv2d | nn.Linear | LoraLinear)]
    if not places:
        layers.unknown("", model, "a chain with at least one linear layer or convolution")
    _untouched(leaves[: places[0]], layers)
    reads: Channels | None = None
    for place, following in pairwise(places):
        between = leaves[place + 1 : following]
        norms = _checked(between, layers)
        writes = opened(leaves[place], norms[0][1] if norms else nn.Identity(), _scaled(between))
        layers.conv(*leaves[place], reads=reads, writes=writes, normed=bool(norms))
        for norm in norms:
            layers.norm(*norm, writes)
        reads = _flattened(leaves[place], between, leaves[following][1], writes, layers)
    layers.conv(*leaves[places[-1]], reads=reads, normed=False)
    _untouched(leaves[places[-1] + 1 :], layers)


def _checked(between: list[Leaf], layers: Layers) -> list[Leaf]:
    """Return the norms among what lies between two layers; everything there must work unit by unit."""
    for name, layer in between:
        if not isinstance(layer, (*_WISE, *_HARD, *_EASY, *_NORMS)):
            layers.unknown(name, layer, "an activation, a norm, a pool or a layer with weights")
    return [leaf for leaf in between if isinstance(leaf[1], _NORMS)]


def _scaled(between: list[Leaf]) -> nn.Module | None:
    """Return what decides whether a unit may be scaled; None where a norm after the activation undoes it."""
    acts = [layer for _, layer in between if isinstance(layer, (*_WISE, *_HARD))]
    late = any(isinstance(layer, _NORMS) for _, layer in between[1:])
    passing = all(passes_scale(act) for act in acts)
    return nn.Identity() if passing and not late else None


def _flattened(leaf: Leaf, between: list[Leaf], following: Any, writes: Channels, layers: Layers) -> Channels:
    """A flattened map has all pixels of a channel side by side."""
    flat = isinstance(leaf[1], nn.Conv2d) and isinstance(following, nn.Linear | LoraLinear)
    if not flat or not any(isinstance(part, nn.Flatten) for _, part in between):
        return writes
    # Flattened pixels are no taps; the map itself is.
    layers.build.tap(leaf[0], "output", 1, writes.space)
    return Channels(writes.space, following.in_features // layers.width(*leaf))


def _untouched(leaves: list[Leaf], layers: Layers) -> None:
    for name, layer in leaves:
        layers.build.still(*(f"{name}.{tensor}" for tensor in layer.state_dict()))


def _leaves(name: str, module: nn.Module) -> list[Leaf]:
    children = list(module.named_children())
    if not children or isinstance(module, LoraLinear):
        return [(name, module)]
    return [leaf for child, part in children for leaf in _leaves(f"{name}.{child}" if name else child, part)]
