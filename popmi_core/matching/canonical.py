"""One spelling for every function: fold what LayerNorm, LayerScale and biases leave open, and undo it.

After folding, every tensor that touches the residual stream is a plain linear map of it, so that a rotation of the
stream is a plain matrix product. The result has the same names and shapes and computes the same function.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.symmetry import Fold, HeadSlots, ViTSymmetry

State = Mapping[str, Tensor]
# Dividing by less than this share of the mean would blow up what little the entry lets through.
_SMALLEST = 0.1


def widen(state: State, symmetry: ViTSymmetry) -> dict[str, Tensor]:
    """Return the state with every tensor under the prefix in float64; others are shared, not copied."""
    inside = symmetry.prefix
    return {n: t.double() if n.startswith(inside) and t.is_floating_point() else t for n, t in state.items()}


def canonicalise(state: State, symmetry: ViTSymmetry) -> dict[str, Tensor]:
    """Return the canonical spelling, in float64: gamma 1, beta 0, LayerScale 1, key and value bias 0.

    Gamma goes into the columns of the layers that read the norm, beta into their bias; LayerScale into the rows of
    the projection. Softmax ignores the key bias. Attention rows sum to one, so that the value bias is a constant
    and moves into the projection's bias.
    """
    result = widen(state, symmetry)
    for fold in symmetry.folds:
        _fold(result, fold)
    for head in symmetry.heads.values():
        _fold_scale(result, head.proj, head.scale)
        settle_biases(result, head)
    for hidden in symmetry.hidden.values():
        _fold_scale(result, hidden.fc2, hidden.scale)
    return result


def spell_like(canonical: State, like: State, symmetry: ViTSymmetry) -> dict[str, Tensor]:
    """Undo the folding: same function, with the gamma, beta and LayerScale of ``like``.

    Key and value biases stay 0 (in the spelling of ``like`` the value's share of beta is in the projection's bias).
    """
    result = dict(canonical)
    for fold in symmetry.folds:
        _unfold(result, fold, like)
    for head in symmetry.heads.values():
        settle_biases(result, head)
        _unfold_scale(result, head.proj, head.scale, like)
    for hidden in symmetry.hidden.values():
        _unfold_scale(result, hidden.fc2, hidden.scale, like)
    return result


def settle_biases(state: dict[str, Tensor], slots: HeadSlots) -> None:
    """Set the key bias to zero and move the value bias into the projection's bias (in place, same function)."""
    if not slots.bias:
        return
    query, key, value = state[f"{slots.qkv}.bias"].chunk(3)
    state[f"{slots.proj}.bias"] = state[f"{slots.proj}.bias"] + state[f"{slots.proj}.weight"] @ value
    # Under qk-norm the key bias is inside the norm and does matter.
    key = torch.zeros_like(key) if slots.query_key == "linear" else key
    state[f"{slots.qkv}.bias"] = torch.cat([query, key, torch.zeros_like(value)])


def gauge(values: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Return the values kept away from zero (a tenth of the mean size, sign kept), so that one can divide by them."""
    wide = values.double()
    least = _SMALLEST * wide.abs().mean()
    if least == 0:
        return torch.ones_like(wide)
    return torch.where(wide < 0, -1.0, 1.0) * wide.abs().clamp_min(least)


def _fold(state: dict[str, Tensor], fold: Fold) -> None:
    gamma, beta = state[f"{fold.norm}.weight"], state.get(f"{fold.norm}.bias")
    for reader in fold.readers:
        weight = state[f"{reader}.weight"]
        if beta is not None:
            state[f"{reader}.bias"] = state[f"{reader}.bias"] + weight @ beta
        state[f"{reader}.weight"] = weight * gamma
    state[f"{fold.norm}.weight"] = torch.ones_like(gamma)
    if beta is not None:
        state[f"{fold.norm}.bias"] = torch.zeros_like(beta)


def _unfold(state: dict[str, Tensor], fold: Fold, like: State) -> None:
    gamma = gauge(like[f"{fold.norm}.weight"])
    beta = like.get(f"{fold.norm}.bias")
    for reader in fold.readers:
        state[f"{reader}.weight"] = state[f"{reader}.weight"] / gamma
        if beta is not None:
            state[f"{reader}.bias"] = state[f"{reader}.bias"] - state[f"{reader}.weight"] @ beta.double()
    state[f"{fold.norm}.weight"] = gamma
    if beta is not None:
        state[f"{fold.norm}.bias"] = beta.double()


def _fold_scale(state: dict[str, Tensor], layer: str, scale: str | None) -> None:
    if scale is not None:
        _scale_rows(state, layer, state[scale])
        state[scale] = torch.ones_like(state[scale])


def _unfold_scale(state: dict[str, Tensor], layer: str, scale: str | None, like: State) -> None:
    if scale is not None:
        values = gauge(like[scale])
        _scale_rows(state, layer, 1 / values)
        state[scale] = values


def _scale_rows(state: dict[str, Tensor], layer: str, factor: Tensor) -> None:
    state[f"{layer}.weight"] = state[f"{layer}.weight"] * factor[:, None]
    if f"{layer}.bias" in state:
        state[f"{layer}.bias"] = state[f"{layer}.bias"] * factor
