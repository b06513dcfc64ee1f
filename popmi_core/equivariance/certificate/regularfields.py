"""Residues of PREA with regular fields: every layer between them, its dense weight as the forward pass reads it.

With rho the permutation of a field's channels, a layer between fields owes ``W[rho o, rho i](g x) = W[o, i](x)``, a
vector of channels ``b[rho c] = b[c]``; pixels and classes are not permuted. So nothing is free but the classifier's
bias, and layers that somebody put in place of the converted ones are held to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from popmi_core.adapters.merge import OrbitMerge
from popmi_core.adapters.prea import Prea
from popmi_core.adapters.regular.convert import holds_channels, together
from popmi_core.adapters.regular.layers import BETWEEN, PLAIN, SharedStatistics, per_channel
from popmi_core.adapters.regular.tokens import TOKENS, position_table
from popmi_core.equivariance.certificate.residue import Residue, residue_of
from popmi_core.groups import Element, PointGroup, act, channel_permutation

Move = tuple[Element, Int[Tensor, " order"]]
_POSITIONS = "pos_embed"
_STATISTICS = ("running_mean", "running_var")


def of_regular(model: Prea, group: PointGroup) -> Iterator[Residue]:
    """Yield the residue of every weight under those elements of ``group`` that the model's own group has."""
    moves = [(g, channel_permutation(model.group, g)) for g in group.elements if g in model.group.elements]
    yield from _of_tokens(model, moves)
    heads, stem = _heads(model), _stem(model)
    for name, module in model.named_modules():
        if module is model.backbone:
            continue
        for part, value in _dense(module):
            if value.ndim == 1 and (module not in heads):
                turned = [_permuted(value, perm) for _, perm in moves]
                yield residue_of(f"{name}.{part}", "regular vector", value, turned)
            elif value.ndim > 1 and isinstance(module, nn.Conv2d | nn.Linear):
                turned = _moved(value, module, moves, reads=module is not stem, writes=module not in heads)
                yield residue_of(f"{name}.{part}", "regular field", value, turned)


def unread(model: Prea) -> str | None:
    """Return why the weights do not tell all: a layer of a kind that is not known, or one that tears fields apart."""
    order, known = len(model.group), {*PLAIN, *BETWEEN}
    for name, module in model.named_modules():
        owned = {part for part, _ in module.named_parameters(recurse=False)}
        if module is model.backbone and owned <= {*TOKENS, _POSITIONS}:
            continue
        if type(module) not in known and not isinstance(module, OrbitMerge | Prea) and holds_channels(module):
            return f"'{name}' ({type(module).__name__}) is not known between regular fields: only measured, not proved"
        for _, channels in together(module):
            if channels % order:
                return f"'{name}' takes {channels} channels together, which tears fields of {order} apart"
    return None


def _heads(model: Prea) -> set[nn.Module]:
    found: Any = model.get_classifier()
    return set(found) if isinstance(found, tuple) else {found}


def _stem(model: Prea) -> nn.Module | None:
    return next((module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)), None)


def _dense(module: Any) -> Iterator[tuple[str, Float[Tensor, " ..."]]]:
    """Yield a layer's own tensors as its forward pass reads them, in float64."""
    for part, stored in module.named_parameters(recurse=False):
        shared = isinstance(module, SharedStatistics)
        yield part, (per_channel(stored, module.order) if shared else getattr(module, part)).double()
    for part in _STATISTICS:
        stored = module._buffers.get(part)
        if stored is not None:
            shared = isinstance(module, SharedStatistics)
            yield part, (per_channel(stored, module.order) if shared else stored).double()


def _channels(count: int, perm: Int[Tensor, " order"]) -> Int[Tensor, " count"] | None:
    """Return the order of ``count`` channels after an element; None where they are no whole fields."""
    return None if count % len(perm) else torch.arange(count).view(-1, len(perm))[:, perm].flatten()


def _permuted(values: Float[Tensor, "*batch channels"], perm: Int[Tensor, " order"]) -> Tensor:
    order = _channels(values.shape[-1], perm)
    return values.new_empty(0) if order is None else values[..., order]


def _moved(
    weight: Float[Tensor, "out in *places"], module: Any, moves: Sequence[Move], *, reads: bool, writes: bool
) -> list[Tensor]:
    """Return the weight under each element.

    Output channel o of a convolution in groups (depthwise ones too) reads the ``in`` channels of its own group; what an
    element makes of them has to lie in one group again, or the layer cannot commute.
    """
    (out, width), groups = weight.shape[:2], int(getattr(module, "groups", 1))
    first = torch.arange(out) // (out // groups) * width
    turned = []
    for element, perm in moves:
        rows = _channels(out, perm) if writes else torch.arange(out)
        read = _channels(width * groups, perm) if reads else torch.arange(width * groups)
        if rows is None or read is None:
            turned.append(weight.new_empty(0))
            continue
        columns = read[first[:, None] + torch.arange(width)] - first[rows][:, None]
        if not 0 <= int(columns.min()) <= int(columns.max()) < width:
            turned.append(weight.new_empty(0))
            continue
        moved = weight[rows[:, None], columns]
        turned.append(act(element, moved) if weight.ndim == 4 else moved)
    return turned


def _of_tokens(model: Prea, moves: Sequence[Move]) -> Iterator[Residue]:
    vit, order = model.backbone, len(model.group)
    for name in TOKENS:
        token = getattr(vit, name, None)
        if isinstance(token, Tensor):
            dense = per_channel(token, order).double()
            turned = [_permuted(dense, perm) for _, perm in moves]
            yield residue_of(f"backbone.{name}", "regular vector", dense, turned)
    if model.orbits is None:
        return
    table = position_table(vit, order, model.orbits)[0].double()
    extra, side = len(table) - len(model.orbits), int(len(model.orbits) ** 0.5)
    grid = table[extra:].view(side, side, -1)
    turned = [act(g, _permuted(grid, perm), dims=(0, 1)) for g, perm in moves]
    yield residue_of(f"backbone.{_POSITIONS}", "regular positions", grid, turned)
    if extra:
        rows = table[:extra]
        yield residue_of(f"backbone.{_POSITIONS}", "regular vector", rows, [_permuted(rows, perm) for _, perm in moves])
