"""A copy of a backbone with all its weights tied, for measuring: dense kernels that are their own orbit means.

It is not the model that is trained (that one stores free coefficients), but computes what such a model could: whatever
then still moves with the image is the geometry's doing.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from popmi_core.adapters.geometry.trace import resized
from popmi_core.groups import PointGroup, act, grid_orbits

# Branches that start closed (layer scales of 1e-6, last norms at 0) would hide what they break once they are trained.
_CLOSED = 1e-3


def tied_twin(backbone: nn.Module, image_size: int, group: PointGroup, *, seed: int = 0) -> nn.Module:
    """Return a copy in evaluation mode, made for ``image_size``, that is invariant wherever its geometry allows.

    Tied are square kernels, absolute position tables, tables of relative positions, and the four neighbours that
    Swin's patch merging joins. Scales that are (nearly) zero are set to one, tables that are zero are drawn.
    """
    twin = resized(copy.deepcopy(backbone), image_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _wake(twin, generator)
        for module in twin.modules():
            _tie(module, group)
        for name, table in twin.named_parameters():
            if name.rpartition(".")[2].startswith("pos_embed"):
                _tie_table(table, group, prefix=int(getattr(twin, "num_prefix_tokens", 0)))
    return twin


def _wake(twin: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in twin.named_parameters():
        if float(parameter.abs().max()) >= _CLOSED:
            continue
        last = name.rpartition(".")[2]
        if parameter.ndim == 1 and last != "bias":
            parameter.fill_(1.0)
        elif parameter.ndim > 1:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _tie(module: Any, group: PointGroup) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size[0] == module.kernel_size[1]:
        module.weight.copy_(torch.stack([act(element, module.weight) for element in group.elements]).mean(dim=0))
    index = getattr(module, "relative_position_index", None)
    if isinstance(index, Tensor):
        module.relative_position_index = _first_of_orbit(index, group)
    reduction, dim = getattr(module, "reduction", None), getattr(module, "dim", None)
    if isinstance(reduction, nn.Linear) and isinstance(dim, int) and reduction.in_features == 4 * dim:
        _tie_neighbours(reduction.weight, group, dim)
        norm = getattr(module, "norm", None)
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (4 * dim,):
            for parameter in (norm.weight, norm.bias):
                _tie_neighbours(parameter[None], group, dim)


def _tie_neighbours(weight: Float[Tensor, "out four_dim"], group: PointGroup, dim: int) -> None:
    # timm joins [column, row, channel]; turning the 2x2 cells is turning a tiny image (its transpose is one as well).
    cells = weight.view(-1, 2, 2, dim)
    cells.copy_(torch.stack([act(element, cells, dims=(1, 2)) for element in group.elements]).mean(dim=0))


def _first_of_orbit(index: Int[Tensor, "*pairs"], group: PointGroup) -> Int[Tensor, "*pairs"]:
    """Return, for each pair of tokens, the row of the table that the first pair of its orbit reads.

    Some families keep the pairs in one row, some have a class token before them.
    """
    tokens = math.isqrt(index.numel())
    side = math.isqrt(tokens)
    extra = tokens - side * side
    tied = index.clone().view(tokens, tokens)
    pairs = tied[extra:, extra:].reshape(side, side, side, side)
    turned = [act(element, act(element, pairs, dims=(0, 1)), dims=(2, 3)) for element in group.elements]
    tied[extra:, extra:] = torch.stack(turned).amin(dim=0).reshape(side * side, side * side)
    return tied.view_as(index)


def _tie_table(table: Tensor, group: PointGroup, *, prefix: int) -> None:
    if table.ndim == 4 and table.shape[-1] == table.shape[-2]:
        table.copy_(torch.stack([act(element, table) for element in group.elements]).mean(dim=0))
        return
    for extra in dict.fromkeys((prefix, 0)):
        side = math.isqrt(max(0, table.shape[1] - extra)) if table.ndim == 3 else 0
        if side and side * side == table.shape[1] - extra:
            orbits = grid_orbits(group, side).flatten()
            sizes = torch.bincount(orbits).to(table)
            sums = table.new_zeros(table.shape[0], len(sizes), table.shape[2]).index_add(1, orbits, table[:, extra:])
            table[:, extra:] = (sums / sizes[:, None])[:, orbits]
            return
