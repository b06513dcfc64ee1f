"""Swin's windows and patch merging, tied: position biases per orbit of offsets, one weight per orbit of neighbours.

An offset between two tokens turns about the centre of the ``2 w - 1`` grid of offsets, so a bias that is constant on
that grid's orbits does not notice a turn of the window. Patch merging reads 2 x 2 neighbours side by side; under C4
they are one orbit, so all four share one matrix and one gamma.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.adapters.tied import orbit_means
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, act, grid_orbits

# timm's window attention and patch merging are typed by convention only.
Layer = Any
# How well a fitted network must hit the averaged biases; float32 keeps 7 digits and a sum of 512 costs two.
_FIT = 1e-5


class TiedNorm(nn.LayerNorm):
    """LayerNorm of 2 x 2 neighbours side by side; ``weight`` and ``bias`` [orbits * dim] are shared in an orbit."""

    orbits: Tensor

    def __init__(self, norm: nn.LayerNorm, orbits: Int[Tensor, " neighbours"]) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps, elementwise_affine=False, device="meta")
        self.register_buffer("orbits", orbits, persistent=False)
        for name, value in norm.named_parameters():
            self.register_parameter(name, nn.Parameter(_shared(value.detach(), orbits)))

    def forward(self, inputs: Float[Tensor, "*batch wide"]) -> Float[Tensor, "*batch wide"]:
        """Return the normalised neighbours."""
        weight, bias = (None if value is None else spread(value, self.orbits) for value in (self.weight, self.bias))
        return functional.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


class TiedReduction(nn.Linear):
    """Linear layer on 2 x 2 neighbours side by side; ``weight`` [out, orbits * dim] is shared in an orbit."""

    orbits: Tensor

    def __init__(self, linear: nn.Linear, orbits: Int[Tensor, " neighbours"]) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.register_buffer("orbits", orbits, persistent=False)
        self.weight = nn.Parameter(_shared(linear.weight.detach(), orbits))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, inputs: Float[Tensor, "*batch wide"]) -> Float[Tensor, "*batch out"]:
        """Return the merged patches."""
        return functional.linear(inputs, spread(self.weight, self.orbits), self.bias)


class TiedBias(nn.Sequential):
    """Swin V2's network from offsets to biases, its table averaged over the group; parameters as in timm."""

    def __init__(self, network: nn.Sequential, group: PointGroup) -> None:
        super().__init__(*network)
        self.group = group

    def forward(self, offsets: Float[Tensor, "1 rows columns 2"]) -> Float[Tensor, "1 rows columns heads"]:
        """Return a table that is constant on the orbits of the grid of offsets."""
        table: Tensor = super().forward(offsets)
        return torch.stack([act(element, table, dims=(1, 2)) for element in self.group.elements]).mean(dim=0)


def neighbour_orbits(group: PointGroup) -> Int[Tensor, " neighbours"]:
    """Return the orbit of each of the 2 x 2 neighbours in timm's order (column first)."""
    return grid_orbits(group, 2).T.flatten()


def spread(values: Float[Tensor, "*batch shared"], orbits: Int[Tensor, " neighbours"]) -> Float[Tensor, "*batch wide"]:
    """Return the values of all neighbours, side by side, from those of their orbits."""
    return values.unflatten(-1, (int(orbits.max()) + 1, -1))[..., orbits, :].flatten(-2)


def tie_table(attention: Layer, group: PointGroup) -> None:
    """Store one row of biases per orbit of offsets in Swin V1's window attention, in place; its forward stays.

    Raises:
        ModelError: If windows are not square.
    """
    orbits = _offset_orbits(attention, group)
    table = attention.relative_position_bias_table
    attention.relative_position_bias_table = nn.Parameter(orbit_means(table.detach().T, orbits).T.contiguous())
    attention.relative_position_index = orbits.to(table.device)[attention.relative_position_index]


def untie_table(attention: Layer, group: PointGroup) -> None:
    """Undo ``tie_table`` in place: the dense table with the same biases."""
    table = attention.relative_position_bias_table
    rows, columns = attention.window_size
    attention.relative_position_bias_table = nn.Parameter(table.detach()[_offset_orbits(attention, group)].clone())
    attention.relative_position_index = get_relative_position_index(rows, columns).to(table.device)


def tie_network(attention: Layer, group: PointGroup) -> None:
    """Average Swin V2's table of biases over the group, in place.

    Raises:
        ModelError: If windows are not square.
    """
    _offset_orbits(attention, group)
    attention.cpb_mlp = TiedBias(attention.cpb_mlp, group)


def untie_network(attention: Layer, *, fit: bool) -> None:
    """Give back a plain network in place: its own weights, or (``fit``) ones that make the averaged table.

    The averaged table is no network of timm's size in general, but it has fewer entries than the network has hidden
    units; the last layer is solved for on fresh, spread out hidden units (least squares, float64).

    Raises:
        ModelError: If the table is too large to be met.
    """
    tied: TiedBias = attention.cpb_mlp
    attention.cpb_mlp = nn.Sequential(*tied)
    if not fit:
        return
    first: Layer = tied[0]
    last: Layer = tied[2]
    offsets: Tensor = attention.relative_coords_table
    with torch.no_grad():
        wanted = tied(offsets).double().flatten(0, 2)
        points = offsets.double().flatten(0, 2)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(first.weight.shape, generator=generator, dtype=torch.float64).to(points)
        # Every unit's edge runs near one of the points: units that are never or always on tell nothing apart.
        places = points[torch.randint(len(points), (len(weight),), generator=generator).to(points.device)]
        bias = -(weight * places).sum(dim=1)
        hidden = torch.relu(points @ weight.T + bias)
        solved = torch.linalg.lstsq(hidden.cpu(), wanted.cpu(), driver="gelsd").solution.to(wanted)
        error = (hidden @ solved - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)
        if not error < _FIT:
            raise ModelError(
                f"the averaged position biases of windows of {attention.window_size} tokens cannot be written as "
                f"timm's network (error {float(error):.1g} of their size). Keep the model under PREA."
            )
        for layer, value in ((first.weight, weight), (first.bias, bias), (last.weight, solved.T)):
            layer.copy_(value)


def tie_merging(merging: Layer, group: PointGroup) -> None:
    """Share the weights of patch merging in every orbit of neighbours, in place (Swin V1 and V2)."""
    orbits = neighbour_orbits(group).to(merging.reduction.weight.device)
    if tuple(getattr(merging.norm, "normalized_shape", ())) == (merging.reduction.in_features,):
        merging.norm = TiedNorm(merging.norm, orbits)
    merging.reduction = TiedReduction(merging.reduction, orbits)


def untie_merging(merging: Layer) -> None:
    """Undo ``tie_merging`` in place: ordinary layers that compute the same."""
    tied: TiedReduction = merging.reduction
    plain = nn.Linear(tied.in_features, tied.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(spread(tied.weight.detach(), tied.orbits).clone())
    plain.bias = tied.bias
    if isinstance(merging.norm, TiedNorm):
        norm = nn.LayerNorm(merging.norm.normalized_shape, eps=merging.norm.eps, elementwise_affine=False)
        for name, value in merging.norm.named_parameters():
            norm.register_parameter(name, nn.Parameter(spread(value.detach(), tied.orbits).clone()))
        norm.elementwise_affine = True
        merging.norm = norm
    merging.reduction = plain


def _shared(values: Float[Tensor, "*batch wide"], orbits: Int[Tensor, " neighbours"]) -> Float[Tensor, "*batch shared"]:
    apart = values.unflatten(-1, (len(orbits), -1)).transpose(-1, -2)
    return orbit_means(apart, orbits).transpose(-1, -2).flatten(-2).contiguous()


def _offset_orbits(attention: Layer, group: PointGroup) -> Int[Tensor, " offsets"]:
    rows, columns = attention.window_size
    if rows != columns:
        raise ModelError(
            f"windows of {rows}x{columns} tokens change their shape under quarter turns, expected square ones. "
            "Merge after them: a later merge_block."
        )
    return grid_orbits(group, 2 * rows - 1).flatten()
