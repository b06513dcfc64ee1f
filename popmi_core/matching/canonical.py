"""One spelling for every function: all steps of a description, and back into the spelling of another model."""

from __future__ import annotations

import torch
from torch import Tensor

from popmi_core.matching.symmetry import State, Symmetry


def widen(state: State, names: set[str], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return the state with these tensors in ``dtype``; all others are shared, not copied."""
    return {n: t.to(dtype) if n in names and t.is_floating_point() else t for n, t in state.items()}


def canonicalise(state: State, symmetry: Symmetry, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return the canonical spelling: gamma 1, beta 0, LayerScale 1, key and value bias 0; same names and shapes.

    Gamma goes into the columns of the layers that read the norm, beta into their bias; LayerScale into the rows of
    the projection. Softmax ignores the key bias. Attention rows sum to one, so that the value bias is a constant
    and moves into the projection's bias.
    """
    result = widen(state, touched(state, symmetry), dtype)
    for step in symmetry.steps:
        step.fold(result)
    return result


def spell_like(canonical: State, like: State, symmetry: Symmetry) -> dict[str, Tensor]:
    """Undo the folding: same function, with the gamma, beta and LayerScale of ``like``.

    Key and value biases stay 0 (in the spelling of ``like`` the value's share of beta is in the projection's bias).
    """
    result = dict(canonical)
    unfold(result, like, symmetry)
    return result


def unfold(canonical: dict[str, Tensor], like: State, symmetry: Symmetry) -> None:
    """Do what ``spell_like`` does in place, so that a whole model is never held twice."""
    for step in symmetry.steps:
        step.unfold(canonical, like)


def touched(state: State, symmetry: Symmetry) -> set[str]:
    """Return the tensors that axes and steps may change, biases of folded layers included."""
    names = symmetry.names()
    layers = {name.rpartition(".")[0] for name in names}
    return names | {f"{layer}.bias" for layer in layers if f"{layer}.bias" in state}
