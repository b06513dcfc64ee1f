"""The steps to one spelling for every function: what LayerNorm, LayerScale and biases leave open is folded away.

After all steps every tensor that touches a rotated stream is a plain linear map of it. Names and shapes stay those of
the architecture, and so does the function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
# Dividing by less than this share of the mean would blow up what little the entry lets through.
_SMALLEST = 0.1


# Vectors of a stream; and weights with the axis along which the same stream lies in them.
Vectors = tuple[tuple[str, ...], tuple[tuple[str, int], ...]]


class Step(Protocol):
    """One change of spelling and its inverse, both in place on a float64 state, both the same function.

    ``turn``: when it is folded. Beta makes biases (0), those are settled with the projection's rows unscaled (1), and
    scales come last (2).
    """

    turn: ClassVar[int]

    def names(self) -> tuple[str, ...]:
        """Return the tensors the step needs."""

    def fold(self, state: dict[str, Tensor]) -> None:
        """Bring the state into the common spelling."""

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        """Give a folded state the spelling of ``like``."""

    def vectors(self) -> Vectors:
        """Return the vectors of a stream that are folded away, and what says where it lies in them."""


@dataclass(frozen=True)
class NormFold:
    """A LayerNorm's gamma goes into the columns of the layers that read it, beta into their bias.

    Where ``readers`` have no bias (``keep_beta``), beta stays in the norm as ``beta / gamma`` (Swin's patch merging,
    ``repeat`` 4); see ``divided`` for what is done where gamma is small. ``order``: the channels that each number of
    the norm stands for (regular fields); a reader has a column for each, or one for all.
    """

    turn: ClassVar[int] = 0
    norm: str
    readers: tuple[str, ...]
    keep_beta: bool = False
    has_beta: bool = True
    order: int = 1

    def vectors(self) -> Vectors:
        beta = (f"{self.norm}.bias",) if self.has_beta else ()
        return (f"{self.norm}.weight", *beta), tuple((f"{reader}.weight", 1) for reader in self.readers)

    def names(self) -> tuple[str, ...]:
        return (f"{self.norm}.weight", *(f"{reader}.weight" for reader in self.readers))

    def fold(self, state: dict[str, Tensor]) -> None:
        gamma, beta = state[f"{self.norm}.weight"], state.get(f"{self.norm}.bias")
        kept = None if beta is None else torch.zeros_like(beta)
        if beta is not None and self.keep_beta:
            weights = [_by_entry(state[f"{reader}.weight"], len(gamma)) for reader in self.readers]
            kept = divided(beta[:, None], gamma, weights)[:, 0]
        for reader in self.readers:
            weight = state[f"{reader}.weight"]
            if beta is not None and not self.keep_beta:
                state[f"{reader}.bias"] = state[f"{reader}.bias"] + _columns(weight, beta, self.order)
            state[f"{reader}.weight"] = weight * _along_columns(gamma, weight)
        state[f"{self.norm}.weight"] = _ones(gamma)
        if kept is not None:
            state[f"{self.norm}.bias"] = kept

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        gamma, beta = gauge(like[f"{self.norm}.weight"]), like.get(f"{self.norm}.bias")
        for reader in self.readers:
            weight = state[f"{reader}.weight"] / _along_columns(gamma, state[f"{reader}.weight"])
            state[f"{reader}.weight"] = weight
            if beta is not None and not self.keep_beta:
                state[f"{reader}.bias"] = state[f"{reader}.bias"] - _columns(weight, beta.to(weight.dtype), self.order)
        state[f"{self.norm}.weight"] = state[f"{self.norm}.weight"] * gamma
        if beta is not None:
            folded = state[f"{self.norm}.bias"]
            state[f"{self.norm}.bias"] = folded * gamma if self.keep_beta else beta.to(folded.dtype)


@dataclass(frozen=True)
class ScaleFold:
    """A LayerScale goes into the rows (and the bias) of the layer before it."""

    turn: ClassVar[int] = 2
    layer: str
    scale: str

    def vectors(self) -> Vectors:
        return (self.scale,), ((f"{self.layer}.weight", 0),)

    def names(self) -> tuple[str, ...]:
        return (f"{self.layer}.weight", self.scale)

    def fold(self, state: dict[str, Tensor]) -> None:
        self._scale_rows(state, state[self.scale])
        state[self.scale] = _ones(state[self.scale])

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        values = gauge(like[self.scale]).to(state[self.scale].dtype)
        self._scale_rows(state, 1 / values)
        state[self.scale] = values

    def _scale_rows(self, state: dict[str, Tensor], factor: Tensor) -> None:
        weight = state[f"{self.layer}.weight"]
        state[f"{self.layer}.weight"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        if f"{self.layer}.bias" in state:
            state[f"{self.layer}.bias"] = state[f"{self.layer}.bias"] * factor


@dataclass(frozen=True)
class ValueBias:
    """Attention rows sum to one, so that the value bias is a constant: it moves into the projection's bias."""

    turn: ClassVar[int] = 1
    bias: str
    start: int
    stop: int
    proj: str

    def vectors(self) -> Vectors:
        return (), ()

    def names(self) -> tuple[str, ...]:
        return (self.bias, f"{self.proj}.weight", f"{self.proj}.bias")

    def fold(self, state: dict[str, Tensor]) -> None:
        value = state[self.bias][self.start : self.stop]
        weight = _by_entry(state[f"{self.proj}.weight"], len(value))
        state[f"{self.proj}.bias"] = state[f"{self.proj}.bias"] + weight @ value
        state[self.bias] = _with_zeros(state[self.bias], self.start, self.stop)

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        del like
        self.fold(state)


@dataclass(frozen=True)
class ZeroBias:
    """Softmax ignores the key bias: it is 0."""

    turn: ClassVar[int] = 1
    bias: str
    start: int
    stop: int

    def vectors(self) -> Vectors:
        return (), ()

    def names(self) -> tuple[str, ...]:
        return (self.bias,)

    def fold(self, state: dict[str, Tensor]) -> None:
        state[self.bias] = _with_zeros(state[self.bias], self.start, self.stop)

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        del like
        self.fold(state)


def gauge(values: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Return the values kept away from zero (a tenth of the mean size, sign kept), so that one can divide by them."""
    wide = values.double()
    least = _SMALLEST * wide.abs().mean()
    if least == 0:
        return torch.ones_like(wide)
    return torch.where(wide < 0, -1.0, 1.0) * wide.abs().clamp_min(least)


def divided(
    values: Float[Tensor, "channels k"], gamma: Float[Tensor, " channels"], readers: Sequence[Tensor]
) -> Float[Tensor, "channels k"]:
    """Return ``x`` with ``W (gamma x) = W values`` for every reader's weight ``W``: ``values / gamma``, mostly.

    A channel that gamma all but closes would make that huge. Where the readers have fewer rows than columns, the
    other channels can make up for it: the smallest such change is taken. Only a channel with gamma exactly 0 before
    readers without that room (``qkv`` without bias) loses its constant: no rotated norm can express it.
    """
    closed = gamma == 0
    plain = torch.where(closed[:, None], 0.0, values / torch.where(closed, 1.0, gamma)[:, None])
    small = gamma.abs() < _SMALLEST * gamma.abs().mean()
    rows = sum(len(reader) for reader in readers)
    if not small.any() or rows > len(gamma) - int(small.sum()) or any(reader.ndim != 2 for reader in readers):
        return plain
    weight = torch.cat(list(readers))
    wanted = weight[:, small] @ values[small]
    # Ranks fall short where a layer starts at zero; on a CPU the default finds the smallest solution all the same.
    change = torch.linalg.lstsq(weight * gamma, wanted).solution
    if not torch.allclose(weight * gamma @ change, wanted, rtol=1e-11, atol=1e-13):
        return plain
    return torch.where(small[:, None], 0.0, plain) + change


def _along_columns(values: Tensor, weight: Tensor) -> Tensor:
    spread = values.to(weight.dtype).repeat_interleave(weight.shape[1] // len(values))
    return spread.reshape(1, -1, *[1] * (weight.ndim - 2))


def _columns(weight: Tensor, values: Tensor, order: int) -> Tensor:
    """Return what a layer makes of a constant input with ``order`` equal channels for each of the values."""
    per_place = weight if weight.ndim == 2 else weight.sum(dim=tuple(range(2, weight.ndim)))
    return _by_entry(per_place, len(values)) @ values * (order * len(values) // weight.shape[1])


def _by_entry(weight: Tensor, entries: int) -> Tensor:
    """Return the weight with the columns of each entry (the channels of a field) added up."""
    return weight if weight.shape[1] == entries else weight.unflatten(1, (entries, -1)).sum(dim=2)


def _with_zeros(values: Tensor, start: int, stop: int) -> Tensor:
    result = values.clone()
    result[start:stop] = 0
    return result


def _ones(like: Tensor) -> Tensor:
    return torch.ones_like(like)
