"""Elements of a ViT's symmetry group: draw one at random, apply one to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.matching.canonical import canonicalise, spell_like, widen
from popmi_core.matching.symmetry import HeadSlots, HiddenSlots, ViTSymmetry

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class HeadMove:
    """New head i is old head ``perm[i]``: q times ``query_key``, k times its inverse transpose, v times ``value``."""

    perm: Int[Tensor, " heads"]
    query_key: Float[Tensor, "heads head_dim head_dim"]
    value: Float[Tensor, "heads head_dim head_dim"]


@dataclass(frozen=True)
class Element:
    """One group element; what is missing stays as it is, bit for bit.

    ``stream`` rotates the residual stream (``R 1 = 1``); ``hidden``: new unit i is old unit ``perm[i]``.
    """

    stream: Float[Tensor, "dim dim"] | None = None
    heads: Mapping[int, HeadMove] = field(default_factory=dict)
    hidden: Mapping[int, Int[Tensor, " units"]] = field(default_factory=dict)


def apply(state: State, symmetry: ViTSymmetry, element: Element, *, like: State | None = None) -> dict[str, Tensor]:
    """Return the moved model: another spelling of the same function, in the number formats it came in.

    A rotation of the stream needs the folded spelling (see canonical.py); ``like`` says whose gamma, beta and
    LayerScale the result gets back then (by default: none, they stay folded).
    """
    wide = widen(state, symmetry) if element.stream is None else canonicalise(state, symmetry)
    for index, move in element.heads.items():
        _move_heads(wide, symmetry.heads[index], move, symmetry)
    for index, perm in element.hidden.items():
        _move_hidden(wide, symmetry.hidden[index], perm)
    if element.stream is not None:
        _rotate(wide, symmetry, element.stream)
        wide = spell_like(wide, like, symmetry) if like is not None else wide
    return {name: wide[name].to(tensor.dtype) for name, tensor in state.items()}


def _move_heads(state: dict[str, Tensor], slots: HeadSlots, move: HeadMove, symmetry: ViTSymmetry) -> None:
    heads = symmetry.num_heads
    maps = torch.stack([move.query_key, torch.linalg.inv(move.query_key).mT, move.value])
    for name in (f"{slots.qkv}.weight", f"{slots.qkv}.bias"):
        if name in state:
            split = state[name].reshape(3, heads, symmetry.head_dim, -1)[:, move.perm]
            state[name] = (maps @ split).reshape(state[name].shape)
    proj = state[f"{slots.proj}.weight"]
    split = proj.reshape(len(proj), heads, -1)[:, move.perm].transpose(0, 1)
    moved = split @ torch.linalg.inv(move.value)
    state[f"{slots.proj}.weight"] = moved.transpose(0, 1).reshape(proj.shape)


def _move_hidden(state: dict[str, Tensor], slots: HiddenSlots, perm: Tensor) -> None:
    for name in (f"{slots.fc1}.weight", f"{slots.fc1}.bias"):
        if name in state:
            state[name] = state[name][perm]
    state[f"{slots.fc2}.weight"] = state[f"{slots.fc2}.weight"][:, perm]


def _rotate(state: dict[str, Tensor], symmetry: ViTSymmetry, stream: Tensor) -> None:
    for name in symmetry.tokens:
        state[name] = state[name] @ stream.T
    for layer in symmetry.readers:
        state[f"{layer}.weight"] = state[f"{layer}.weight"] @ stream.T
    for layer in symmetry.writers:
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = (stream @ weight.flatten(1)).reshape(weight.shape)
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = stream @ state[f"{layer}.bias"]


def random_element(symmetry: ViTSymmetry, generator: torch.Generator) -> Element:
    """Draw an element: a rotation with ``R 1 = 1``, head orders and bases (condition at most 4), unit orders."""
    heads = {index: _random_move(slots, symmetry, generator) for index, slots in symmetry.heads.items()}
    hidden = {index: torch.randperm(slots.units, generator=generator) for index, slots in symmetry.hidden.items()}
    stream = None
    if symmetry.stream == "orthogonal":
        stream = random_rotation(symmetry.dim, generator)
    return Element(stream, heads, hidden)


def random_rotation(dim: int, generator: torch.Generator) -> Float[Tensor, "dim dim"]:
    """Draw an orthogonal matrix with ``R 1 = 1`` (a reflection half of the time)."""
    ones = torch.ones(dim, 1, dtype=torch.float64)
    # Gram-Schmidt from the vector of ones: the other columns span what LayerNorm leaves to rotate.
    basis = torch.linalg.qr(torch.cat([ones, _normal((dim, dim - 1), generator)], dim=1)).Q[:, 1:]
    turn = torch.linalg.qr(_normal((dim - 1, dim - 1), generator)).Q
    return ones @ ones.T / dim + basis @ turn @ basis.T


def _random_move(slots: HeadSlots, symmetry: ViTSymmetry, generator: torch.Generator) -> HeadMove:
    size = (symmetry.num_heads, symmetry.head_dim)
    perm = torch.randperm(size[0], generator=generator)
    identity = torch.eye(size[1], dtype=torch.float64).expand(size[0], -1, -1)
    query_key = identity if slots.query_key == "fixed" else _random_basis(size, generator)
    return HeadMove(perm, query_key, _random_basis(size, generator))


def _random_basis(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    square = (*size, size[1])
    left, right = torch.linalg.qr(_normal(square, generator)).Q, torch.linalg.qr(_normal(square, generator)).Q
    stretch = 2 ** (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    return left * stretch[:, None, :] @ right


def _normal(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)
