"""Group-equivariant networks with regular fields: whole fields change places, and each may be shifted by the group.

A regular field has one channel for each group element, and the group acts on it by ``(g f)(h) = f(g^-1 h)`` (Cohen &
Welling 2016, arXiv:1602.07576, section 4). What commutes with that from the other side is ``f(h) -> f(h k)``: moves of
fields and such shifts keep every kernel equivariant, and equivariant kernels form a linear space, so the mean of
models moved this way is equivariant too. Any other order of channels keeps one model's function, but breaks that.

A model tells that it is built this way by ``field_group``. Its weights are dense (expanded): a convolution of F fields
has ``F * |G|`` output channels, a field's side by side, in the order of the group's elements.
"""

from __future__ import annotations

from torch import nn

from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup
from popmi_core.matching.builder import Builder
from popmi_core.matching.families.channels import Channels, Layers
from popmi_core.matching.families.mlp import Leaf, chain


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return isinstance(getattr(model, "field_group", None), PointGroup)


def describe(model: nn.Module, build: Builder) -> None:
    """Describe a chain of equivariant layers from pixels (first) to classes (last), regular fields between them.

    Raises:
        ModelError: If a layer is not known, or does not write whole fields.
    """
    layers = Layers(build)
    group = getattr(model, "field_group", None)
    if not isinstance(group, PointGroup):
        layers.unknown("", model, "a model with a field_group")

    def opened(layer: Leaf, norm: nn.Module, act: nn.Module | None) -> Channels:
        del norm, act  # a scale for each channel would break equivariance
        return Channels(field_space(build, layer[0], layers.width(*layer), group))

    chain(model, layers, opened)
    layers.done()


def field_space(build: Builder, name: str, channels: int, group: PointGroup) -> str:
    """Declare a space of regular fields and return its name; for describing a model by hand.

    Raises:
        ModelError: If the channels are not whole fields.
    """
    fields, left = divmod(channels, len(group))
    if left:
        raise ModelError(
            f"{build.family}: module '{build.prefix}{name}' writes {channels} channels, expected whole fields of "
            f"{len(group)} (group {group.name}). Check field_group, or expand the layer's weights."
        )
    return build.space(name, "fields", fields, inner=len(group), shifts=shift_table(group))


def shift_table(group: PointGroup) -> tuple[tuple[int, ...], ...]:
    """Return the orders of a field's channels that commute with the group: row k is ``h -> h k``."""
    return tuple(tuple(group.index(h.compose(k)) for h in group.elements) for k in group.elements)
