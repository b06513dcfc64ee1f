"""PREA as a file has it: which adapters, of which rank, and which blocks are free, read from the tensors' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from popmi_core.adapters import attach
from popmi_core.adapters.prea import Fields
from popmi_core.adapters.soft import free_blocks_in, soften
from popmi_core.cli.heads import ADAPTER, BACKBONE
from popmi_core.errors import ModelError

if TYPE_CHECKING:
    from popmi_core.cli.parents import Parent

_BOTTLENECK = (f"{ADAPTER}down.", f"{ADAPTER}up.")
_LIFTED = f"{ADAPTER}lift."


def has_prea(parent: Parent) -> bool:
    """Whether a file's model is under PREA; at block 0 without adapters only the backbone's prefix says so."""
    return any(name.startswith((ADAPTER, BACKBONE)) for name in parent.state)


def adapted(
    model: nn.Module, parent: Parent, *, group: str, merge_block: int | None, fields: Fields, image_size: int
) -> nn.Module:
    """Return the plain ``model`` under PREA with the adapters and free blocks that ``parent`` has.

    Low-rank adapters are put on by who reads them (``low_rank_of``).

    Raises:
        ModelError: If the tensors of an adapter are not all there, or the model cannot be merged so.
    """
    kinds = {
        "bottleneck": any(name.startswith(_BOTTLENECK) for name in parent.state),
        "lifted-conv": any(name.startswith(_LIFTED) for name in parent.state),
    }
    ranks = [_rank(parent, kind) for kind, there in kinds.items() if there]
    whole = attach(
        model,
        group=group,
        merge_block=merge_block,
        fields=fields,
        weights="lambda" if f"{ADAPTER}score.weight" in parent.state else "mean",
        adapters="+".join(kind for kind, there in kinds.items() if there) or "none",
        rank=ranks[0] if ranks else 1,
    )
    free = free_blocks_in(parent.state, model)
    return soften(whole, free_blocks=free, image_size=image_size) if free else whole


def _rank(parent: Parent, kind: str) -> int:
    name = f"{ADAPTER}down.weight"
    if kind == "lifted-conv":
        lifted = sorted(each for each in parent.state if each.startswith(_LIFTED) and each.endswith(".down.weight"))
        name = lifted[0] if lifted else f"{_LIFTED}0.down.weight"
    down = parent.state.get(name)
    if down is None or down.ndim != 2:
        got = "is missing" if down is None else f"has shape {tuple(down.shape)}"
        raise ModelError(
            f"{parent.file} has PREA inside, but its '{name}' {got}, expected a matrix. Take a file of the whole model."
        )
    return int(down.shape[0])
