"""Tie whatever lets places in after the merge, in place, and undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Int
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from popmi_core.adapters import symmetric, windows
from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.tied import TiedConv2d
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup

Backbone = Any


def tie(backbone: Backbone, group: PointGroup, block: int) -> Int[Tensor, " cells"] | None:
    """Tie every spatial weight after ``block`` blocks or stages in place (0: the stem's too; L: none).

    Kernels keep one value per orbit of pixels, window tables one row per orbit of offsets, patch merging one matrix per
    orbit of neighbours; at block 0 a ViT's position table one row per orbit of cells. Each starts as the orbit mean,
    the nearest symmetric weights.

    Returns:
        The orbit of each of a ViT's tokens where its position table is tied.

    Raises:
        ModelError: If a module has spatial weights that cannot be tied; the message names it.
    """
    orbits = None
    if block == 0 and hasattr(backbone, "pos_embed"):
        orbits = symmetric.tie_positions(backbone, group)
    for owner, name, module, path in list(_after(backbone, block)):
        try:
            _tie(owner, name, module, group)
        except ModelError as error:
            raise ModelError(f"{type(backbone).__name__}: '{path}': {error}") from error
    return orbits


def untie(backbone: Backbone, group: PointGroup, orbits: Int[Tensor, " cells"] | None, *, fit: bool) -> None:
    """Undo ``tie`` in place: timm's own modules and shapes, the same function.

    Only Swin V2's bias networks cannot always be given back averaged: without ``fit`` they come as their own weights
    are, with it they are solved for.

    Raises:
        ModelError: If ``fit`` and a network cannot be met.
    """
    symmetric.untie_positions(backbone, orbits)
    for owner, name, module, _ in list(_within(backbone, "")):
        if isinstance(module, TiedConv2d):
            setattr(owner, name, module.dense())
        elif type(module) is swin_transformer.WindowAttention and _is_tied(module):
            windows.untie_table(module, group)
        elif type(module) is swin_transformer_v2.WindowAttention and isinstance(module.cpb_mlp, windows.TiedBias):
            windows.untie_network(module, fit=fit)
        elif isinstance(getattr(module, "reduction", None), windows.TiedReduction):
            windows.untie_merging(module)


def _tie(owner: nn.Module, name: str, module: Any, group: PointGroup) -> None:
    known = _IN_PLACE.get(type(module))
    if known is not None:
        known(module, group)
    elif isinstance(module, nn.Conv2d):
        if module.kernel_size != (1, 1):
            setattr(owner, name, TiedConv2d(module, group))
    elif hasattr(module, "kernel_size") and any(True for _ in module.parameters(recurse=False)) and _wide(module):
        raise ModelError(
            f"{type(module).__name__} has a kernel that cannot be tied. Merge after it: a later merge_block."
        )


_IN_PLACE: dict[type[nn.Module], Callable[[Any, PointGroup], None]] = {
    swin_transformer.WindowAttention: windows.tie_table,
    swin_transformer_v2.WindowAttention: windows.tie_network,
    swin_transformer.PatchMerging: windows.tie_merging,
    swin_transformer_v2.PatchMerging: windows.tie_merging,
}


def _wide(module: Any) -> bool:
    # A convolution over channels (efficient channel attention) has a kernel, but not over places.
    return not isinstance(module, nn.Conv1d) and module.kernel_size not in (1, (1, 1))


def _is_tied(attention: Any) -> bool:
    rows, columns = attention.window_size
    return bool(attention.relative_position_bias_table.shape[0] < (2 * rows - 1) * (2 * columns - 1))


def _after(backbone: Backbone, block: int) -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    cut = cut_of(backbone)
    if block == 0:
        yield from _within(backbone, "")
    elif cut is not None:
        for path, stage in cut.stages(backbone)[block:]:
            yield from _within(stage, path)


def _within(root: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    """Return every module below ``root`` as (its owner, its name there, itself, its whole name)."""
    for prefix, owner in root.named_modules(prefix=path):
        for name, module in owner.named_children():
            yield owner, name, module, f"{prefix}.{name}" if prefix else name
