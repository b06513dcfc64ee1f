"""Fold PREA away: the plain timm model that computes the same, where there is one."""

from __future__ import annotations

from typing import cast

from torch import nn

from popmi_core.adapters.lora import merge_lora
from popmi_core.adapters.merge import TABLE
from popmi_core.adapters.prea import Prea, detach
from popmi_core.adapters.tying import untie
from popmi_core.errors import ModelError


def fold(model: nn.Module) -> nn.Module:
    """Return the plain timm model that computes the same, for designs that cost nothing at inference.

    That is merge block 0 with low-rank adapters or none, and regular fields: its state dict is timm's own and loads
    anywhere. Kernels that were freed are folded too. What comes from regular fields is trainable again.

    Raises:
        ModelError: If the model is not under PREA, runs several copies, has adapters or tables of places that are no
            part of a plain network, or position biases that timm's network cannot make (large windows of Swin V2).
    """
    if not isinstance(model, Prea):
        raise ModelError(f"{type(model).__name__} is not under PREA, expected what attach() gives. Nothing to fold.")
    if not model.folded:
        raise ModelError(
            f"merge_block {model.merge_block} runs {len(model.group)} copies of each image, which no plain network "
            "does. Attach at merge_block 0 and distil into it, or keep the model under PREA."
        )
    if model.prea.down is not None or len(model.prea.lift):
        raise ModelError(
            "a bottleneck or lifted convolution is no part of a plain network. Attach with adapters 'none' or 'lora'."
        )
    if any(name.endswith(f".{TABLE}") for name, _ in model.named_parameters()):
        raise ModelError(
            "a freed table of places (free_blocks) is no part of a plain network. Keep the model under PREA, or "
            "attach without free blocks."
        )
    if model.fields == "regular":
        return detach(model)
    plain = cast(Prea, merge_lora(model))
    untie(plain.backbone, plain.group, plain.orbits, fit=True)
    backbone: nn.Module = plain.backbone
    return backbone
