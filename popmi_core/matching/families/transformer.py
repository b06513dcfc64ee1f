"""What all transformers share: packed attention, plain and gated MLPs, norms that are read by layers.

``stream`` is always the name of the residual stream's space, or None where its basis has to stay.
"""

from __future__ import annotations

from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching.builder import BY_HAND, Builder
from popmi_core.matching.steps import NormFold, ScaleFold, ValueBias, ZeroBias
from popmi_core.matching.symmetry import MapKind


def refuse(build: Builder, module: str, found: object, expected: str) -> ModelError:
    """Return the error for a module that a family does not know (named without the prefix)."""
    return ModelError(
        f"{build.family}: module '{build.prefix}{module}' is a {type(found).__name__}, expected {expected}. "
        f"{BY_HAND}; or take a rule that needs no description."
    )


def rotated(build: Builder, stream: str | None) -> bool:
    """Whether a stream may be rotated, so that norms on it have to be folded away."""
    return stream is not None and build.spaces[build.prefix + stream].kind == "orthogonal"


def attention(
    name: str, heads: int, build: Builder, *, stream: str | None, scale: str = "", positions: str | None = None
) -> None:
    """Describe one softmax attention with a packed ``qkv``: heads, and a free basis change inside each.

    ``positions`` is a table of biases with one column a head; ``scale`` the LayerScale after it.
    """
    dim = build.inputs(f"{name}.proj")
    normed = any(build.has(f"{name}.{norm}.weight") for norm in ("q_norm", "k_norm"))
    # A norm over all values, or a gate on each, sees the basis inside a head.
    seen = build.has(f"{name}.norm.weight") or build.has(f"{name}.gate.weight")
    space = head_space(f"{name.removesuffix('.attn')}.heads", heads, dim, build, normed=normed, seen=seen)
    build.still(*(f"{name}.{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")))
    packed(f"{name}.qkv", space, dim, build)
    for layer in ("gate", "norm"):
        for tensor in (f"{name}.{layer}.weight", f"{name}.{layer}.bias"):
            if build.has(tensor):
                build.axis(tensor, 0, space, part="value")
    if positions is not None:
        build.axis(positions, 1, space)
    for reader in ("qkv", "gate"):
        if stream is not None and build.has(f"{name}.{reader}.weight"):
            build.linear(f"{name}.{reader}", reads=stream)
    project(f"{name}.proj", space, build, stream=stream, scale=scale)
    settle_biases(f"{name}.qkv", dim, build, proj=None if seen else f"{name}.proj", normed=normed)


def head_space(name: str, heads: int, dim: int, build: Builder, *, normed: bool = False, seen: bool = False) -> str:
    """Declare the heads of ``dim`` channels; ``normed`` queries and keys and ``seen`` values keep their basis."""
    maps: dict[str, MapKind] = {"query_key": "fixed" if normed else "linear", "value": "fixed" if seen else "linear"}
    return build.space(name, "heads", heads, inner=dim // heads, maps=maps)


def packed(layer: str, space: str, dim: int, build: Builder, *, start: int = 0) -> None:
    """Say that a layer's rows from ``start`` on are all heads' queries, then keys, then values."""
    for tensor in (f"{layer}.weight", f"{layer}.bias"):
        if build.has(tensor):
            middle, last = start + dim, start + 2 * dim
            build.axis(tensor, 0, space, part="query_key", start=start, stop=middle)
            build.axis(tensor, 0, space, part="query_key", dual=True, start=middle, stop=last)
            build.axis(tensor, 0, space, part="value", start=last, stop=last + dim)


def project(layer: str, space: str, build: Builder, *, stream: str | None, scale: str = "") -> None:
    """Describe the projection that reads all heads' values and writes the stream."""
    build.reads(layer, space, part="value")
    build.linear(layer, writes=stream)
    build.tap(layer, "input", -1, space, part="value")
    scaled(layer, scale, build, stream=stream)


def settle_biases(
    layer: str, dim: int, build: Builder, *, proj: str | None, normed: bool = False, start: int = 0
) -> None:
    """Fold the biases of queries, keys and values (rows from ``start`` on) that leave the function open.

    The value bias moves into the projection's; softmax ignores the key bias (but not under a norm).
    """
    if not build.has(f"{layer}.bias"):
        return
    bias = f"{build.prefix}{layer}.bias"
    if not normed:
        build.step(ZeroBias(bias, start + dim, start + 2 * dim))
    if proj is not None and build.has(f"{proj}.bias"):
        build.step(ValueBias(bias, start + 2 * dim, start + 3 * dim, build.prefix + proj))


def hidden(layer: nn.Module, name: str, build: Builder, *, stream: str | None, scale: str = "") -> None:
    """Describe one MLP, plain or gated (a gated one packs gate and value into fc1).

    Raises:
        ModelError: If it is another kind of MLP.
    """
    if not isinstance(layer, Mlp | GluMlp | SwiGLU):
        raise refuse(build, name, layer, "an MLP of timm (Mlp, GluMlp or SwiGLU)")
    normed = build.has(f"{name}.norm.weight")
    units = build.inputs(f"{name}.fc2")
    rescalable = isinstance(layer, Mlp) and isinstance(layer.act, nn.ReLU) and not normed
    build.space(name, "permutation", units, rescalable=rescalable)
    packs = 2 if isinstance(layer, GluMlp) else 1
    for first in first_layers(layer):
        for tensor in (f"{name}.{first}.weight", f"{name}.{first}.bias"):
            if build.has(tensor):
                build.axis(tensor, 0, name, repeat=packs)
        if stream is not None:
            build.reads(f"{name}.{first}", stream)
    if normed:
        build.norm(f"{name}.norm", name)
    build.linear(f"{name}.fc2", reads=name, writes=stream)
    build.tap(f"{name}.fc2", "input", -1, name)
    scaled(f"{name}.fc2", scale, build, stream=stream)


def first_layers(layer: nn.Module) -> tuple[str, ...]:
    """Return the names of an MLP's layers that read the stream."""
    return ("fc1_g", "fc1_x") if isinstance(layer, SwiGLU) else ("fc1",)


def read_norm(
    norm: str, readers: tuple[str, ...], build: Builder, *, stream: str | None, repeat: int = 1, pads: bool = False
) -> None:
    """Describe a norm that only ``readers`` read; under a rotated stream it is folded into them.

    Where a reader has no bias to take up beta, or tokens are padded by zeros between the norm and the reader
    (``pads``), beta stays in the norm as a vector of the stream. ``repeat``: the norm sees that many copies of it.
    """
    if not build.has(f"{norm}.weight"):
        return
    if stream is None:
        build.still(f"{norm}.weight", f"{norm}.bias")
        return
    has_beta = build.has(f"{norm}.bias")
    if not rotated(build, stream):
        build.axis(f"{norm}.weight", 0, stream, repeat=repeat)
        if has_beta:
            build.axis(f"{norm}.bias", 0, stream, repeat=repeat)
        return
    keep = has_beta and (pads or not all(build.has(f"{reader}.bias") for reader in readers))
    prefixed = tuple(build.prefix + reader for reader in readers)
    build.step(NormFold(build.prefix + norm, prefixed, keep_beta=keep, has_beta=has_beta, order=build.order))
    if keep:
        # It moves, but where gamma is small it is large and would drown what tells the channels apart.
        build.axis(f"{norm}.bias", 0, stream, repeat=repeat, counts=False)


def scaled(layer: str, scale: str, build: Builder, *, stream: str | None) -> None:
    """Describe the LayerScale after a layer that writes the stream, where there is one."""
    if not scale or not build.has(scale):
        return
    if stream is None or rotated(build, stream):
        build.step(ScaleFold(build.prefix + layer, build.prefix + scale))
    else:
        build.axis(scale, 0, stream)
