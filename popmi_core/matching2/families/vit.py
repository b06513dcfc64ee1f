"""ViT and DeiT: one rotation for the residual stream, heads with free bases inside, hidden units.

A rotation of the stream has to pass every LayerNorm (``R 1 = 1``), whose gamma and beta are folded into the layers that
read it. Where an affine norm writes the stream (CLIP's pre-norm) or tokens are pooled by their maximum, only
permutations pass; where the features are the output, their basis stays.
"""

from __future__ import annotations

from typing import Any

from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching2.builder import Builder
from popmi_core.matching2.steps import NormFold, ScaleFold, ValueBias, ZeroBias
from popmi_core.matching2.symmetry import Kind, MapKind

STREAM = "stream"


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model (relatives with rotary or relative positions are others)."""
    return type(model) in (VisionTransformer, VisionTransformerDistilled)


def describe(model: Any, build: Builder) -> None:
    """Describe a VisionTransformer of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """
    kind = _stream_kind(model)
    if kind is not None:
        build.space(STREAM, kind, model.embed_dim)
        _embeddings(model, build)
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise ModelError(
                f"vit: module '{build.prefix}blocks.{index}' is a {type(block).__name__}, expected timm's Block. "
                "Describe it by hand with popmi_core.matching.Builder."
            )
        name = f"blocks.{index}"
        attention(block.attn, f"{name}.attn", build, stream=STREAM if kind else None, scale=f"{name}.ls1.gamma")
        read_norm(build, f"{name}.norm1", (f"{name}.attn.qkv",), STREAM if kind else None)
        hidden(block.mlp, f"{name}.mlp", build, stream=STREAM if kind else None, scale=f"{name}.ls2.gamma")
        readers = ("fc1_g", "fc1_x") if isinstance(block.mlp, SwiGLU) else ("fc1",)
        read_norm(build, f"{name}.norm2", tuple(f"{name}.mlp.{layer}" for layer in readers), STREAM if kind else None)
        if kind:
            build.tap(name, "output", -1, STREAM)
    _ends(model, build, kind)


def attention(
    layer: Any, name: str, build: Builder, *, stream: str | None, scale: str, positions: str | None = None
) -> None:
    """Describe one attention layer with a packed ``qkv``; ``positions`` is a table with one column a head."""
    heads, dim = layer.num_heads, layer.num_heads * layer.head_dim
    space = f"{name.removesuffix('.attn')}.heads"
    normed = any(build.has(f"{name}.{norm}.weight") for norm in ("q_norm", "k_norm"))
    inner_norm = build.has(f"{name}.norm.weight")
    maps: dict[str, MapKind] = {
        "query_key": "fixed" if normed else "linear",
        "value": "fixed" if inner_norm else "linear",
    }
    build.space(space, "heads", heads, inner=layer.head_dim, maps=maps)
    build.still(*(f"{name}.{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")))
    for tensor in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
        if build.has(tensor):
            build.axis(tensor, 0, space, part="query_key", stop=dim)
            build.axis(tensor, 0, space, part="query_key", dual=True, start=dim, stop=2 * dim)
            build.axis(tensor, 0, space, part="value", start=2 * dim)
    build.axis(f"{name}.proj.weight", 1, space, part="value", dual=True)
    if inner_norm:
        for part in ("weight", "bias"):
            build.axis(f"{name}.norm.{part}", 0, space, part="value")
    if positions is not None:
        build.axis(positions, 1, space)
    if stream is not None:
        build.axis(f"{name}.qkv.weight", 1, stream, dual=True)
        build.linear(f"{name}.proj", writes=stream)
    else:
        build.still(f"{name}.proj.bias")
    build.tap(f"{name}.proj", "input", -1, space, part="value")
    _scaled(build, f"{name}.proj", scale, stream)
    _biases(build, name, dim, normed=normed, inner_norm=inner_norm)


def _biases(build: Builder, name: str, dim: int, *, normed: bool, inner_norm: bool) -> None:
    """The value bias moves into the projection's; softmax ignores the key bias (but not under a norm)."""
    if not build.has(f"{name}.qkv.bias"):
        return
    bias = f"{build.prefix}{name}.qkv.bias"
    if not normed:
        build.step(ZeroBias(bias, dim, 2 * dim))
    if build.has(f"{name}.proj.bias") and not inner_norm:
        build.step(ValueBias(bias, 2 * dim, 3 * dim, f"{build.prefix}{name}.proj"))


def hidden(layer: nn.Module, name: str, build: Builder, *, stream: str | None, scale: str) -> None:
    """Describe one MLP, plain or gated (a gated one packs gate and value into fc1).

    Raises:
        ModelError: If it is another kind of MLP.
    """
    if not isinstance(layer, Mlp | GluMlp | SwiGLU):
        raise ModelError(
            f"vit: module '{build.prefix}{name}' is a {type(layer).__name__}, expected an MLP of timm. "
            "Describe it by hand with popmi_core.matching.Builder."
        )
    units = build.shape(f"{name}.fc2.weight")[1]
    build.space(name, "permutation", units)
    packed = 2 if isinstance(layer, GluMlp) else 1
    for first in ("fc1_g", "fc1_x") if isinstance(layer, SwiGLU) else ("fc1",):
        for tensor in (f"{name}.{first}.weight", f"{name}.{first}.bias"):
            if build.has(tensor):
                build.axis(tensor, 0, name, repeat=packed)
        if stream is not None:
            build.linear(f"{name}.{first}", reads=stream)
    if build.has(f"{name}.norm.weight"):
        build.norm(f"{name}.norm", name)
    build.linear(f"{name}.fc2", reads=name, writes=stream)
    build.tap(f"{name}.fc2", "input", -1, name)
    _scaled(build, f"{name}.fc2", scale, stream)


def read_norm(build: Builder, norm: str, readers: tuple[str, ...], stream: str | None) -> None:
    """Describe a norm that only ``readers`` read; under a rotated stream it is folded into them.

    Where a reader has no bias to take up beta, beta stays in the norm as a vector of the stream.
    """
    if not build.has(f"{norm}.weight"):
        return
    rotated = stream is not None and build.spaces[build.prefix + stream].kind == "orthogonal"
    if not rotated:
        if stream is not None:
            build.norm(norm, stream)
        else:
            build.still(f"{norm}.weight", f"{norm}.bias")
        return
    has_beta = build.has(f"{norm}.bias")
    keep = has_beta and not all(build.has(f"{reader}.bias") for reader in readers)
    build.step(NormFold(build.prefix + norm, tuple(build.prefix + reader for reader in readers), keep_beta=keep))
    if keep and stream is not None:
        build.axis(f"{norm}.bias", 0, stream)


def _scaled(build: Builder, layer: str, scale: str, stream: str | None) -> None:
    if not build.has(scale):
        return
    if stream is not None and build.spaces[build.prefix + stream].kind == "permutation":
        build.axis(scale, 0, stream)
        return
    build.step(ScaleFold(build.prefix + layer, build.prefix + scale))


def _stream_kind(model: Any) -> Kind | None:
    if isinstance(model.head, nn.Identity):
        return None
    writes = not isinstance(model.norm_pre, nn.Identity) or hasattr(getattr(model.patch_embed, "norm", None), "weight")
    headed = [name for name in ("norm", "fc_norm") if hasattr(getattr(model, name), "weight")]
    pooled = model.global_pool in ("token", "avg")
    return "orthogonal" if pooled and not writes and len(headed) <= 1 else "permutation"


def _embeddings(model: Any, build: Builder) -> None:
    build.linear("patch_embed.proj", writes=STREAM)
    for token in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if build.has(token):
            build.axis(token, -1, STREAM)
    for norm in ("norm_pre", "patch_embed.norm"):
        if build.has(f"{norm}.weight"):
            build.norm(norm, STREAM)


def _ends(model: Any, build: Builder, kind: Kind | None) -> None:
    if model.attn_pool is not None:
        raise ModelError(
            f"vit: module '{build.prefix}attn_pool' is not described. Describe it by hand with "
            "popmi_core.matching.Builder, or take a model with token or average pooling."
        )
    heads = tuple(head for head in ("head", "head_dist") if build.has(f"{head}.weight"))
    for norm in ("norm", "fc_norm"):
        read_norm(build, norm, heads, STREAM if kind else None)
    for head in heads:
        build.linear(head, reads=STREAM if kind else None)
    if kind is None:
        build.note("stream fixed: the features are the output")
        build.still("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.weight")
        build.still("patch_embed.proj.bias", "norm_pre.weight", "norm_pre.bias")
