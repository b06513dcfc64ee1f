"""max |rho W - W rho| of every weight that the group constrains: how far a network's weights are off the subspace.

What is constrained depends on what the features are. *Scalar fields* (a turn only moves places: timm's families, PREA):
kernels, position tables, window biases and patch merging have to be invariant; all else is free. *Regular fields*
(group-equivariant networks, ``field_group``; PREA's, see ``regularfields``): kernels commute with moved places and
permuted channels. *Slabs* (the octic transformer): linear maps commute with the isotypic action. Behind an orbit-merge
at block k only what comes after block k counts; what comes before sees whole orbits and is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters.geometry import stages_of
from popmi_core.adapters.merge import TABLE
from popmi_core.adapters.prea import Prea
from popmi_core.adapters.symmetric import position_table
from popmi_core.adapters.tied import TiedConv2d
from popmi_core.adapters.windows import TiedNorm, TiedReduction, spread
from popmi_core.equivariance.certificate.regularfields import of_regular
from popmi_core.equivariance.certificate.residue import Residue as Residue
from popmi_core.equivariance.certificate.residue import residue_of
from popmi_core.groups import PointGroup, act, channel_permutation
from popmi_core.groups.octic import act_on_slabs
from popmi_core.invariance.gcnn import GroupCnn, GroupDenseNet, LiftConv, RegularConv
from popmi_core.models.octic.layers import OcticLinear
from popmi_core.models.octic.vit import OcticPatchEmbed, OcticPositions


def residues(model: nn.Module, group: PointGroup) -> tuple[Residue, ...]:
    """Return the residue of every constrained weight, in the model's own order, computed in float64."""
    with torch.no_grad():
        if isinstance(getattr(model, "field_group", None), PointGroup):
            return tuple(_of_fields(model, group))
        if is_octic(model):
            return tuple(_of_slabs(model, group))
        if isinstance(model, GroupCnn | GroupDenseNet):
            return tuple(_of_kernels(model, group))
        if isinstance(model, Prea) and model.fields == "regular":
            return tuple(of_regular(model, group))
        return tuple(_of_scalars(model, group))


def is_octic(model: nn.Module) -> bool:
    """Whether the features are the slabs of the octic transformer."""
    return any(isinstance(module, OcticLinear) for module in model.modules())


def _of_scalars(model: Any, group: PointGroup) -> Iterator[Residue]:
    adapted = isinstance(model, Prea)
    backbone, prefix = (model.backbone, "backbone.") if adapted else (model, "")
    block = model.merge_block if adapted else 0
    if block == 0:
        yield from _positions(model, backbone, prefix, group)
    for name, module in _after(backbone, block):
        for kind, last, weight, turned in _constrained(module, group):
            yield residue_of(f"{prefix}{name}.{last}", kind, weight, turned)
    for name, table in model.named_parameters():
        if name.rpartition(".")[2] == TABLE:
            yield _grid_residue(name, table, group, extra=None)


def _after(backbone: nn.Module, block: int) -> Iterator[tuple[str, nn.Module]]:
    stages = tuple(f"{name}." for name in stages_of(backbone)[block:]) if block else None
    for name, module in backbone.named_modules():
        if stages is None or f"{name}.".startswith(stages):
            yield name, module


def _constrained(module: Any, group: PointGroup) -> Iterator[tuple[str, str, Tensor, list[Tensor]]]:
    """Yield (kind, name, dense weight, the weight under each element) of what a module's places make it owe."""
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        kernel = (module.kernel() if isinstance(module, TiedConv2d) else module.weight).double()
        yield "kernel", "weight", kernel, [act(element, kernel) for element in group.elements]
    table, index = (getattr(module, f"relative_position_{end}", None) for end in ("bias_table", "index"))
    if isinstance(table, Tensor) and isinstance(index, Tensor):
        pairs = _pairs(table.double(), index)
        turned = [act(element, act(element, pairs, dims=(0, 1)), dims=(2, 3)) for element in group.elements]
        yield "window table", "relative_position_bias_table", pairs, turned
    elif hasattr(module, "cpb_mlp"):
        biases = module.cpb_mlp(module.relative_coords_table).double()
        turned = [act(element, biases, dims=(1, 2)) for element in group.elements]
        yield "window table", "cpb_mlp", biases, turned
    reduction, norm = getattr(module, "reduction", None), getattr(module, "norm", None)
    if isinstance(reduction, nn.Linear) and isinstance(getattr(module, "dim", None), int):
        yield from _merging(module.dim, reduction, norm, group)


def _merging(dim: int, reduction: Any, norm: Any, group: PointGroup) -> Iterator[tuple[str, str, Tensor, list[Tensor]]]:
    for last, layer in (("reduction", reduction), ("norm", norm)):
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if (
                isinstance(layer, TiedReduction | TiedNorm)
                and value is not None
                and (name, last) != ("bias", "reduction")
            ):
                value = spread(value, layer.orbits)
            if isinstance(value, Tensor) and value.shape[-1] == 4 * dim:
                cells = value.double().reshape(-1, 2, 2, dim)
                turned = [act(element, cells, dims=(1, 2)) for element in group.elements]
                yield "patch merging", f"{last}.{name}", cells, turned


def _pairs(table: Float[Tensor, "rows heads"], index: Tensor) -> Float[Tensor, "side side side side heads"]:
    tokens = math.isqrt(index.numel())
    side = math.isqrt(tokens)
    extra = tokens - side * side
    inside = index.view(tokens, tokens)[extra:, extra:]
    return table[inside.reshape(-1)].view(side, side, side, side, -1)


def _positions(model: Any, backbone: Any, prefix: str, group: PointGroup) -> Iterator[Residue]:
    table = getattr(backbone, "pos_embed", None)
    if not isinstance(table, Tensor):
        return
    orbits = getattr(model, "orbits", None)
    dense = table if orbits is None else position_table(backbone, orbits)
    yield _grid_residue(f"{prefix}pos_embed", dense, group, extra=int(getattr(backbone, "num_prefix_tokens", 0)))


def _grid_residue(name: str, table: Tensor, group: PointGroup, extra: int | None) -> Residue:
    grid = table.double()
    if table.ndim == 3:
        cells = table.shape[1]
        rest = [cut for cut in dict.fromkeys((extra or 0, 0)) if math.isqrt(cells - cut) ** 2 == cells - cut]
        cut = rest[0] if rest else 0
        side = math.isqrt(cells - cut)
        grid = grid[:, cut : cut + side * side].reshape(len(table), side, side, -1)
    dims = (1, 2) if grid.shape[1] == grid.shape[2] else (2, 3)
    return residue_of(name, "position table", grid, [act(element, grid, dims=dims) for element in group.elements])


def _of_fields(model: nn.Module, group: PointGroup) -> Iterator[Residue]:
    """Channels of a layer that reads what another wrote are whole fields; pixels and classes are not."""
    order, first = len(group), True
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Conv2d | nn.Linear) or not isinstance(weight, Tensor):
            continue
        last, dense = isinstance(module, nn.Linear), weight.detach().double()
        turned = []
        for element in group.elements:
            perm = channel_permutation(group, element)
            moved = dense if last else act(element, dense)
            if not last:
                moved = moved.unflatten(0, (-1, order))[:, perm].flatten(0, 1)
            if not first:
                moved = moved.unflatten(1, (-1, order))[:, :, perm].flatten(1, 2)
            turned.append(moved)
        yield residue_of(f"{name}.weight", "regular field", dense, turned)
        if not last and module.bias is not None:
            bias = module.bias.detach().double().unflatten(0, (-1, order))
            yield residue_of(f"{name}.bias", "regular field", bias, [bias.roll(step, 1) for step in range(order)])
        first = False


def _of_kernels(model: GroupCnn | GroupDenseNet, group: PointGroup) -> Iterator[Residue]:
    """Kernels of networks whose free ones commute by construction: the dense ones made of them are looked at."""
    own = model.group
    for name, module in model.named_modules():
        if isinstance(module, LiftConv | RegularConv):
            dense, turned = module.kernel().double(), []
            for element in (element for element in group.elements if element in own.elements):
                perm = channel_permutation(own, element)
                moved = act(element, dense).unflatten(0, (-1, len(own)))[:, perm].flatten(0, 1)
                if isinstance(module, RegularConv):
                    moved = moved.unflatten(1, (-1, len(own)))[:, :, perm].flatten(1, 2)
                turned.append(moved)
            yield residue_of(f"{name}.weight", "regular field", dense, turned)


def _of_slabs(model: nn.Module, group: PointGroup) -> Iterator[Residue]:
    for name, module in model.named_modules():
        if isinstance(module, OcticLinear):
            weight = module.e
            basis = torch.eye(8 * module.copies_in, dtype=weight.dtype, device=weight.device)
            out = module(basis)
            moved = [act_on_slabs(g.inverse(), module(act_on_slabs(g, basis))).double() for g in group.elements]
            yield residue_of(name, "isotypic blocks", out.double(), moved)
        elif isinstance(module, OcticPatchEmbed):
            kernel = module.kernel().double()
            # As a field: f(gx) = rho(g) f(x), so that the kernel is its own turned and permuted copy.
            turned = [act_on_slabs(g, act(g, kernel).movedim(0, -1)).movedim(-1, 0) for g in group.elements]
            yield residue_of(f"{name}.proj", "isotypic kernel", kernel, turned)
        elif isinstance(module, OcticPositions):
            table = module()[0].double()
            side = math.isqrt(len(table))
            grid = table.view(side, side, -1)
            turned = [act_on_slabs(g, act(g, grid, dims=(0, 1))) for g in group.elements]
            yield residue_of(f"{name}.table", "isotypic positions", grid, turned)
