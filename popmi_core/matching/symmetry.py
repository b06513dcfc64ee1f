"""Which axes of which tensors of a ViT move together, and under which group.

A timm ViT computes the same function after one rotation ``R`` of its residual stream with ``R 1 = 1`` (it passes
LayerNorm), any order of its heads, any invertible basis inside a head, and any order of its hidden units. This file
only says where those axes lie; anything it is not sure about is left out of the group, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from popmi_core.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
_ANCHOR = re.compile(r"^(?P<prefix>.*?)blocks\.(?P<block>\d+)\.attn\.qkv\.weight$")


@dataclass(frozen=True)
class Fold:
    """A LayerNorm whose gamma and beta can move into the layers that read it (``weight`` + ``bias`` names)."""

    norm: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class HeadSlots:
    """One attention layer. ``query_key`` is ``fixed`` under qk-norm: no basis change inside a head."""

    qkv: str
    proj: str
    scale: str | None
    norm: str
    bias: bool
    query_key: Literal["linear", "fixed"]


@dataclass(frozen=True)
class HiddenSlots:
    """One MLP; ``norm`` is the one it reads, ``scale`` its LayerScale."""

    fc1: str
    fc2: str
    scale: str | None
    norm: str
    bias: bool
    units: int


@dataclass(frozen=True)
class ViTSymmetry:
    """The symmetry group of one ViT; layer names carry no prefix, tensor names do.

    ``stream`` is ``fixed`` where some tensor writes or reads the residual stream in a way not known here (an
    adapter, CLIP's affine norm): heads and hidden units can still be matched. ``writers`` hold the stream in their
    first axis (``tokens`` in their last); ``readers`` in their last.
    """

    prefix: str
    dim: int
    num_heads: int
    stream: Literal["orthogonal", "fixed"]
    tokens: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    folds: tuple[Fold, ...]
    heads: dict[int, HeadSlots]
    hidden: dict[int, HiddenSlots]
    depth: int
    notes: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.num_heads

    def names(self) -> set[str]:
        """Return every tensor matching reads or moves (full names); a state without all of them is not matched."""
        slotted = [(slots.qkv, slots.proj, slots.bias, slots.scale) for slots in self.heads.values()]
        slotted += [(slots.fc1, slots.fc2, slots.bias, slots.scale) for slots in self.hidden.values()]
        named = {f"{layer}.weight" for first, second, _, _ in slotted for layer in (first, second)}
        named |= {f"{layer}.bias" for first, second, bias, _ in slotted if bias for layer in (first, second)}
        named |= {scale for _, _, _, scale in slotted if scale}
        named |= {f"{layer}.weight" for fold in self.folds for layer in (fold.norm, *fold.readers)}
        if self.stream == "orthogonal":
            named |= {*self.tokens, *(f"{layer}.weight" for layer in (*self.writers, *self.readers))}
        return named

    def heads_only(self) -> ViTSymmetry:
        """Return the part about attention: bases inside heads, and the norms that can be folded into them."""
        norms = {slots.norm for slots in self.heads.values()}
        return replace(self, stream="fixed", hidden={}, folds=tuple(f for f in self.folds if f.norm in norms))

    def without_stream(self, reason: str) -> ViTSymmetry:
        """Return the smaller group in which every layer stands alone: no rotation, no folding between layers."""
        return replace(
            self,
            stream="fixed",
            folds=(),
            heads={i: replace(slots, scale=None) for i, slots in self.heads.items()},
            hidden={i: replace(slots, scale=None) for i, slots in self.hidden.items()},
            notes=(*self.notes, f"stream fixed: {reason}"),
        )

    def without_layers(self, *, heads: Iterable[int], hidden: Iterable[int], reason: str) -> ViTSymmetry:
        """Return the smaller group that leaves these blocks' heads and these blocks' hidden units alone."""
        dropped_heads, dropped_hidden = set(heads), set(hidden)
        named = [f"blocks.{i}.heads" for i in sorted(dropped_heads)]
        named += [f"blocks.{i}.mlp" for i in sorted(dropped_hidden)]
        return replace(
            self,
            heads={i: slots for i, slots in self.heads.items() if i not in dropped_heads},
            hidden={i: slots for i, slots in self.hidden.items() if i not in dropped_hidden},
            notes=(*self.notes, *(f"{name} fixed: {reason}" for name in named)),
        )


def describe(state: Mapping[str, Tensor] | Shapes, *, num_heads: int, pool: str = "token") -> ViTSymmetry | None:
    """Read the symmetry group of a stock timm ViT from its tensors' names and shapes.

    A state cannot show everything (pooling, rotary positions, where a norm stands): use ``describe_model`` where
    there is a model, which also puts the description to the test.

    Args:
        state: Tensors or shapes by name, with or without a common prefix such as ``backbone.``.
        num_heads: Heads of every attention layer.
        pool: ``token`` or ``avg``; under any other pooling the stream stays fixed.

    Returns:
        None where the architecture is not known yet (Swin, ConvNeXt, ResNet, ...): plain averaging, and say so.

    Raises:
        ModelError: If the heads do not divide the channels.
    """
    shapes: dict[str, tuple[int, ...]] = {name: _shape(value) for name, value in state.items()}
    anchors = [found for found in map(_ANCHOR.match, shapes) if found]
    prefixes = {found["prefix"] for found in anchors}
    if len(prefixes) != 1 or re.search(r"\d", next(iter(prefixes))):
        return None
    prefix = prefixes.pop()
    indices = sorted(int(found["block"]) for found in anchors)
    dim = shapes[f"{prefix}blocks.{indices[0]}.attn.qkv.weight"][-1]
    if num_heads < 1 or dim % num_heads:
        raise ModelError(
            f"describe: {dim} channels do not divide into {num_heads} heads, expected a divisor. "
            "Pass the model's own num_heads."
        )
    return _assemble(prefix, dim, num_heads, indices, shapes, pool)


def _shape(value: Tensor | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value)


def _assemble(
    prefix: str, dim: int, num_heads: int, indices: list[int], shapes: Shapes, pool: str
) -> ViTSymmetry | None:
    known: set[str] = set()
    heads: dict[int, HeadSlots] = {}
    hidden: dict[int, HiddenSlots] = {}
    for index in indices:
        block = f"{prefix}blocks.{index}"
        if not _is_block(block, dim, shapes):
            return None
        attention, mlp = _heads(block, shapes), _hidden(block, shapes)
        if attention:
            heads[index] = attention
        if mlp:
            hidden[index] = mlp
        known |= _block_names(block, attention, mlp)
    edges = _Edges(prefix, dim, shapes)
    known |= edges.known
    readers: tuple[str, ...] = edges.readers
    for attention in heads.values():
        readers += (attention.qkv,)
    for mlp in hidden.values():
        readers += (mlp.fc1,)
    writers = edges.writers + tuple(slots.proj for slots in heads.values()) + tuple(m.fc2 for m in hidden.values())
    reason = edges.unfit or _unfit(heads, hidden, set(shapes) - known, pool)
    return ViTSymmetry(
        prefix=prefix,
        dim=dim,
        num_heads=num_heads,
        stream="fixed" if reason else "orthogonal",
        tokens=edges.tokens,
        writers=writers,
        readers=readers,
        folds=(() if reason else edges.folds) + _block_folds(heads, hidden),
        heads=heads,
        hidden=hidden,
        depth=len(indices),
        notes=(f"stream fixed: {reason}",) if reason else (),
    )


class _Edges:
    """What comes before and after the blocks."""

    def __init__(self, prefix: str, dim: int, shapes: Shapes) -> None:
        def have(layer: str) -> bool:
            return f"{prefix}{layer}.weight" in shapes

        self.tokens = tuple(f"{prefix}{t}" for t in ("cls_token", "reg_token", "pos_embed") if f"{prefix}{t}" in shapes)
        self.writers: tuple[str, ...] = (f"{prefix}patch_embed.proj",) if have("patch_embed.proj") else ()
        self.readers: tuple[str, ...] = (f"{prefix}head",) if have("head") else ()
        norms = [f"{prefix}{norm}" for norm in ("norm", "fc_norm") if have(norm)]
        self.folds = tuple(Fold(norm, self.readers) for norm in norms)
        self.unfit = ""
        if not self.writers or not self.readers:
            self.unfit = "no patch_embed.proj or no head in the state"
        elif len(norms) > 1 or (norms and f"{self.readers[0]}.bias" not in shapes):
            self.unfit = "the final norm cannot be folded into the head"
        elif any(shapes[token][-1] != dim for token in self.tokens):
            self.unfit = "tokens of another width than the blocks"
        layers = (*self.writers, *self.readers, *norms)
        self.known = {*self.tokens, *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))}


def _is_block(block: str, dim: int, shapes: Shapes) -> bool:
    wanted = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm1": (dim,), "norm2": (dim,)}
    if any(shapes.get(f"{block}.{layer}.weight") != shape for layer, shape in wanted.items()):
        return False
    fc1, fc2 = shapes.get(f"{block}.mlp.fc1.weight", ()), shapes.get(f"{block}.mlp.fc2.weight", ())
    return len(fc1) == len(fc2) == 2 and fc1[1] == fc2[0] == dim


def _heads(block: str, shapes: Shapes) -> HeadSlots | None:
    plain = {f"{block}.attn.{layer}.{part}" for layer in ("qkv", "proj") for part in ("weight", "bias")}
    normed = {f"{block}.attn.{layer}.{part}" for layer in ("q_norm", "k_norm") for part in ("weight", "bias")}
    present = {name for name in shapes if name.startswith(f"{block}.attn.")}
    bias = f"{block}.attn.qkv.bias" in shapes
    # A value bias can only move into a projection bias; without one the basis inside heads is not ours to change.
    if present - plain - normed or (bias and f"{block}.attn.proj.bias" not in shapes):
        return None
    return HeadSlots(
        qkv=f"{block}.attn.qkv",
        proj=f"{block}.attn.proj",
        scale=_scale(f"{block}.ls1", shapes),
        norm=f"{block}.norm1",
        bias=bias,
        query_key="fixed" if present & normed else "linear",
    )


def _hidden(block: str, shapes: Shapes) -> HiddenSlots | None:
    plain = {f"{block}.mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")}
    present = {name for name in shapes if name.startswith(f"{block}.mlp.")}
    if present - plain or shapes[f"{block}.mlp.fc1.weight"] != shapes[f"{block}.mlp.fc2.weight"][::-1]:
        return None
    return HiddenSlots(
        fc1=f"{block}.mlp.fc1",
        fc2=f"{block}.mlp.fc2",
        scale=_scale(f"{block}.ls2", shapes),
        norm=f"{block}.norm2",
        bias={f"{block}.mlp.fc1.bias", f"{block}.mlp.fc2.bias"} <= present,
        units=shapes[f"{block}.mlp.fc1.weight"][0],
    )


def _scale(layer: str, shapes: Shapes) -> str | None:
    return f"{layer}.gamma" if f"{layer}.gamma" in shapes else None


def _block_names(block: str, heads: HeadSlots | None, hidden: HiddenSlots | None) -> set[str]:
    layers = ["norm1", "norm2"]
    if heads:
        layers += ["attn.qkv", "attn.proj", "attn.q_norm", "attn.k_norm"]
    if hidden:
        layers += ["mlp.fc1", "mlp.fc2"]
    named = {f"{block}.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    return named | {f"{block}.ls1.gamma", f"{block}.ls2.gamma"}


def _block_folds(heads: Mapping[int, HeadSlots], hidden: Mapping[int, HiddenSlots]) -> tuple[Fold, ...]:
    folds = [Fold(slots.norm, (slots.qkv,)) for slots in heads.values() if slots.bias]
    return tuple(folds + [Fold(mlp.norm, (mlp.fc1,)) for mlp in hidden.values() if mlp.bias])


def _unfit(heads: Mapping[int, HeadSlots], hidden: Mapping[int, HiddenSlots], unknown: Iterable[str], pool: str) -> str:
    """Return why the stream may not be rotated, or nothing."""
    strangers = sorted(unknown)
    if strangers:
        return f"{len(strangers)} tensors with unknown part in it, such as '{strangers[0]}'"
    if pool not in ("token", "avg"):
        return f"'{pool}' pooling does not commute with a rotation"
    if not (all(slots.bias for slots in heads.values()) and all(slots.bias for slots in hidden.values())):
        return "a layer without bias cannot take up its norm's beta"
    return ""
