"""Layers between regular fields that store only what the group leaves free, under timm's own names.

A regular field has one channel per group element, side by side in the order of the group's elements, and turns with the
image: ``(g f)(h) = f(g^-1 h)`` (Cohen & Welling 2016, arXiv:1602.07576, section 4). F fields are F |G| channels. A
layer that commutes with that is made of one free kernel a field (equations 10 and 11), and of one number a field
wherever channels are scaled or shifted. ``state_dict`` and ``parameters()`` hold what is free; read as attributes,
``weight``, ``bias`` and ``gamma`` are dense, so timm's own ``forward`` runs on them. They are made anew at every
reading: writing into them changes nothing. ``convert`` puts these classes over timm's.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.layer_scale import LayerScale
from timm.layers.linear import Linear
from timm.layers.norm import GroupNorm, GroupNorm1, LayerNorm, LayerNorm2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from popmi_core.errors import ModelError


def per_channel(values: Float[Tensor, "*batch fields"], order: int) -> Float[Tensor, "*batch channels"]:
    """Return one number per channel from one per field: the same for all ``order`` channels of a field."""
    return values[..., None].expand(*values.shape, order).flatten(-2)


class Regular:
    """What every layer of regular fields has: |G|, and the free numbers that timm's parameter names stand for."""

    order: int
    _parameters: Any

    def reset_parameters(self) -> None:
        """Refuse: timm's initialisers write into dense weights, which are not stored.

        Raises:
            ModelError: Always.
        """
        raise ModelError("a layer between regular fields is not drawn anew. Draw the backbone's, then attach again.")

    def _dense(self, name: str) -> Any:
        free = self._parameters.get(name)
        return None if free is None else per_channel(free, self.order)


class SharedVectors(Regular):
    """A norm whose scale and shift are one number a field."""

    weight = property(lambda self: self._dense("weight"))
    bias = property(lambda self: self._dense("bias"))


class SharedGamma(Regular):
    """LayerScale with one number a field."""

    gamma = property(lambda self: self._dense("gamma"))


class SharedStatistics(Regular):
    """BatchNorm of fields: mean and variance run over batch, places and the channels of a field."""

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
        """Return the normalised maps."""
        count, channels, height, width = images.shape
        fields = images.reshape(count, channels // self.order, self.order * height, width)
        normed: Tensor = super().forward(fields)  # type: ignore[misc]
        return normed.reshape(images.shape)


class FreeKernel(Regular):
    """A linear layer or convolution that writes fields: ``weight`` [fields, in, ...] is one kernel a field.

    ``index`` tells which of its numbers stands where in the kernels of the field's |G| channels.
    """

    index: Int[Tensor, " dense"]
    weight = property(lambda self: self._kernel())
    bias = property(lambda self: self._dense("bias"))

    def _kernel(self) -> Float[Tensor, "channels in *places"]:
        free: Tensor = self._parameters["weight"]
        return free.flatten(1).index_select(1, self.index).view(len(free) * self.order, *free.shape[1:])

    def free_inputs(self, rows: Float[Tensor, "rows fan_in"]) -> Float[Tensor, "rows_order fan_in"]:
        """Return what the free kernel multiplies where the dense one multiplies ``rows``: |G| orders of each."""
        orders = self.index.view(self.order, -1).argsort(dim=1)
        return rows[:, orders].flatten(0, 1)


class Readout(Regular):
    """A classifier that reads fields: ``weight`` [classes, fields] is the same for all channels of a field."""

    weight = property(lambda self: self._dense("weight"))

    def free_inputs(self, rows: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows fields"]:
        """Return what the free weight multiplies where the dense one multiplies ``rows``: sums over fields."""
        return rows.unflatten(1, (-1, self.order)).sum(dim=2)


class RegularConv2d(FreeKernel, nn.Conv2d): ...


class RegularConv2dSame(FreeKernel, Conv2dSame): ...


class RegularLinear(FreeKernel, nn.Linear): ...


class RegularLinearTimm(FreeKernel, Linear): ...


class ReadoutLinear(Readout, nn.Linear): ...


class ReadoutLinearTimm(Readout, Linear): ...


class RegularLayerNorm(SharedVectors, nn.LayerNorm): ...


class RegularLayerNormTimm(SharedVectors, LayerNorm): ...


class RegularLayerNorm2d(SharedVectors, LayerNorm2d): ...


class RegularGroupNorm(SharedVectors, nn.GroupNorm): ...


class RegularGroupNormTimm(SharedVectors, GroupNorm): ...


class RegularGroupNorm1(SharedVectors, GroupNorm1): ...


class RegularLayerScale(SharedGamma, LayerScale): ...


class RegularConvNeXtBlock(SharedGamma, ConvNeXtBlock): ...


class RegularBatchNorm2d(SharedStatistics, nn.BatchNorm2d): ...


class RegularBatchNormAct2d(SharedStatistics, BatchNormAct2d): ...


BETWEEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: RegularConv2d,
    Conv2dSame: RegularConv2dSame,
    nn.Linear: RegularLinear,
    Linear: RegularLinearTimm,
    nn.LayerNorm: RegularLayerNorm,
    LayerNorm: RegularLayerNormTimm,
    LayerNorm2d: RegularLayerNorm2d,
    nn.GroupNorm: RegularGroupNorm,
    GroupNorm: RegularGroupNormTimm,
    GroupNorm1: RegularGroupNorm1,
    LayerScale: RegularLayerScale,
    ConvNeXtBlock: RegularConvNeXtBlock,
    nn.BatchNorm2d: RegularBatchNorm2d,
    BatchNormAct2d: RegularBatchNormAct2d,
}
READING: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: ReadoutLinear, Linear: ReadoutLinearTimm}
PLAIN = {made: kind for table in (BETWEEN, READING) for kind, made in table.items()}
