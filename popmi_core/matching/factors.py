"""A ViT as rows that touch the residual stream: what matching compares.

Every row holds one or two stream vectors (``dim`` numbers each) and perhaps a bias. Turning the stream turns every row;
a basis change inside a head mixes the head's rows; an order of hidden units orders the rows of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.symmetry import HeadSlots, HiddenSlots, ViTSymmetry

State = Mapping[str, Tensor]
# Keeps a basis change finite where a head has lost a direction; far below what float32 weights resolve.
_RIDGE = 1e-12


@dataclass(frozen=True)
class HeadFactors:
    """One attention layer: rows ``[key | query | query bias]`` and ``[value | output]`` of every head."""

    query_key: Float[Tensor, "heads head_dim two_dim_and_bias"]
    value: Float[Tensor, "heads head_dim two_dim"]


@dataclass(frozen=True)
class Factors:
    """All rows of one model, float64, canonical spelling (see canonical.py)."""

    dim: int
    outer: Float[Tensor, "rows dim"]
    heads: dict[int, HeadFactors]
    hidden: dict[int, Float[Tensor, "units two_dim_and_bias"]]


@dataclass(frozen=True)
class HeadBasis:
    """The basis changes that balance every head: q by ``query_key``, k by its inverse transpose, v by ``value``."""

    query_key: Float[Tensor, "heads head_dim head_dim"]
    value: Float[Tensor, "heads head_dim head_dim"]


def factorise(state: State, symmetry: ViTSymmetry) -> Factors:
    """Return the rows of a model.

    Raises:
        KeyError: If the state lacks a tensor of the description (the caller checks).
    """
    folded = canonicalise(state, symmetry)
    return Factors(
        dim=symmetry.dim,
        outer=_outer(folded, symmetry),
        heads={i: head_factors(folded, slots, symmetry.num_heads) for i, slots in symmetry.heads.items()},
        hidden={i: _hidden(folded, slots) for i, slots in symmetry.hidden.items()},
    )


def head_factors(folded: State, slots: HeadSlots, num_heads: int) -> HeadFactors:
    """Return the rows of one attention layer of a folded state."""
    query, key, value = folded[f"{slots.qkv}.weight"].reshape(3, num_heads, -1, folded[f"{slots.qkv}.weight"].shape[1])
    proj = folded[f"{slots.proj}.weight"]
    output = proj.T.reshape(num_heads, -1, len(proj))
    parts = [key, query]
    if slots.bias:
        query_bias, key_bias, _ = folded[f"{slots.qkv}.bias"].reshape(3, num_heads, -1, 1)
        parts += [query_bias, key_bias] if slots.query_key == "fixed" else [query_bias]
    return HeadFactors(torch.cat(parts, dim=-1), torch.cat([value, output], dim=-1))


def put_heads(state: dict[str, Tensor], slots: HeadSlots, rows: HeadFactors) -> None:
    """Write one attention layer's rows back into a folded state (in place); the inverse of ``head_factors``."""
    weight, proj = state[f"{slots.qkv}.weight"], state[f"{slots.proj}.weight"]
    dim = weight.shape[1]
    key, query, biases = rows.query_key[..., :dim], rows.query_key[..., dim : 2 * dim], rows.query_key[..., 2 * dim :]
    value, output = rows.value[..., :dim], rows.value[..., dim:]
    state[f"{slots.qkv}.weight"] = torch.stack([query, key, value]).reshape(weight.shape)
    state[f"{slots.proj}.weight"] = output.reshape(proj.shape[::-1]).T.contiguous()
    if slots.bias:
        query_bias = biases[..., 0].flatten()
        key_bias = biases[..., 1].flatten() if slots.query_key == "fixed" else torch.zeros_like(query_bias)
        state[f"{slots.qkv}.bias"] = torch.cat([query_bias, key_bias, torch.zeros_like(query_bias)])


def _hidden(folded: State, slots: HiddenSlots) -> Tensor:
    parts = [folded[f"{slots.fc1}.weight"], folded[f"{slots.fc2}.weight"].T]
    if slots.bias:
        parts.append(folded[f"{slots.fc1}.bias"][:, None])
    return torch.cat(parts, dim=1)


def _outer(folded: State, symmetry: ViTSymmetry) -> Tensor:
    """Rows outside of heads and hidden units: embeddings, the head, and the biases that write the stream."""
    if symmetry.stream == "fixed":
        return torch.zeros(0, symmetry.dim, dtype=torch.float64)
    inner = {name for slots in symmetry.heads.values() for name in (slots.qkv, slots.proj)}
    inner |= {name for slots in symmetry.hidden.values() for name in (slots.fc1, slots.fc2)}
    rows = [folded[token].reshape(-1, symmetry.dim) for token in symmetry.tokens]
    rows += [folded[f"{layer}.weight"] for layer in symmetry.readers if layer not in inner]
    for layer in symmetry.writers:
        if layer not in inner:
            rows.append(folded[f"{layer}.weight"].flatten(1).T)
        if f"{layer}.bias" in folded:
            rows.append(folded[f"{layer}.bias"][None])
    return torch.cat(rows)


def balance(factors: HeadFactors, slots: HeadSlots, dim: int) -> HeadBasis:
    """Return the bases in which both factors of a head have the same Gram matrix (GL(d_h) shrinks to O(d_h))."""
    size = factors.value.shape[:2]
    identity = torch.eye(size[1], dtype=torch.float64).expand(size[0], -1, -1)
    value = _balancer(factors.value[..., :dim], factors.value[..., dim:])
    if slots.query_key == "fixed":
        return HeadBasis(identity, value)
    return HeadBasis(_balancer(factors.query_key[..., dim:], factors.query_key[..., :dim]), value)


def rebase(factors: HeadFactors, basis: HeadBasis, dim: int) -> HeadFactors:
    """Return the rows in another basis; the products of the two factors stay."""
    key, query = factors.query_key[..., :dim], factors.query_key[..., dim:]
    value, output = factors.value[..., :dim], factors.value[..., dim:]
    query_key = torch.cat([torch.linalg.inv(basis.query_key).mT @ key, basis.query_key @ query], dim=-1)
    return HeadFactors(query_key, torch.cat([basis.value @ value, torch.linalg.inv(basis.value).mT @ output], dim=-1))


def _balancer(left: Float[Tensor, "h k m"], right: Float[Tensor, "h k n"]) -> Float[Tensor, "h k k"]:
    """Return T with ``Gram(T left) = Gram(T^-T right)``.

    With the Gram matrices ``G = L L^T`` and H, and ``L^T H L = V D V^T``: ``T = D^1/4 V^T L^-1`` makes both ``D^1/2``.
    """
    lower = torch.linalg.cholesky(_gram(left))
    values, vectors = torch.linalg.eigh(lower.mT @ _gram(right) @ lower)
    values = values.clamp_min(values.amax(-1, keepdim=True) * _RIDGE)
    # T^T = L^-T V D^1/4
    turned = torch.linalg.solve_triangular(lower.mT, vectors * values[..., None, :] ** 0.25, upper=True)
    return turned.mT


def _gram(rows: Tensor) -> Tensor:
    gram = rows @ rows.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    # A head of zeros (fresh projection) gets the identity: there is nothing to balance against.
    return torch.where(trace > 0, gram + _RIDGE * trace * identity, identity)
