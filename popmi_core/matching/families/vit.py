"""ViT and DeiT: one rotation for the residual stream, heads with free bases inside, hidden units.

A rotation of the stream has to pass every LayerNorm (``R 1 = 1``), whose gamma and beta are folded into the layers that
read it. Where an affine norm writes the stream (CLIP's pre-norm, post-norm blocks) or tokens are pooled by their
maximum, only permutations pass; where the features are the output, their basis stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.transformer import (
    attention,
    first_layers,
    head_space,
    hidden,
    packed,
    project,
    read_norm,
    refuse,
    scaled,
    settle_biases,
)
from popmi_core.matching.steps import ValueBias, ZeroBias
from popmi_core.matching.symmetry import Kind

STREAM = "stream"
POOLED = "attn_pool.stream"


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model (relatives with rotary or relative positions are others)."""
    return type(model) in (VisionTransformer, VisionTransformerDistilled)


def describe(model: Any, build: Builder) -> None:
    """Describe a VisionTransformer of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """
    kind = _stream_kind(model, build)
    stream = None if kind is None else STREAM
    dim = build.shape("patch_embed.proj.weight")[0]
    if kind == "grouped":
        heads = model.attn_pool.num_heads
        build.space(STREAM, kind, heads, inner=dim // heads)
    elif kind is not None:
        build.space(STREAM, kind, dim)
    _embeddings(build, stream)
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        known = _BLOCKS.get(type(block))
        if known is None:
            raise refuse(build, name, block, "a block of timm's VisionTransformer (Block, ResPostBlock, Parallel...)")
        known(block, name, build, stream)
        if stream is not None:
            build.tap(name, "output", -1, stream)
    _ends(model, build, stream)


def _plain(block: Any, name: str, build: Builder, stream: str | None) -> None:
    readers = _attention(block.attn, f"{name}.attn", build, stream, f"{name}.ls1.gamma")
    read_norm(f"{name}.norm1", readers, build, stream=stream)
    readers = _hidden(block.mlp, f"{name}.mlp", build, stream, f"{name}.ls2.gamma")
    read_norm(f"{name}.norm2", readers, build, stream=stream)


def _post_norm(block: Any, name: str, build: Builder, stream: str | None) -> None:
    """Norms that write the stream: it is a permutation, and they move with it."""
    _attention(block.attn, f"{name}.attn", build, stream, "")
    _hidden(block.mlp, f"{name}.mlp", build, stream, "")
    for norm in ("norm1", "norm2"):
        read_norm(f"{name}.{norm}", (), build, stream=stream)


def _side_by_side(block: Any, name: str, build: Builder, stream: str | None) -> None:
    """Several attentions at once, then several MLPs (Touvron et al. 2022, arXiv:2203.09795)."""
    for index, branch in enumerate(block.attns):
        part = f"{name}.attns.{index}"
        readers = _attention(branch.attn, f"{part}.attn", build, stream, f"{part}.ls.gamma")
        read_norm(f"{part}.norm", readers, build, stream=stream)
    for index, branch in enumerate(block.ffns):
        part = f"{name}.ffns.{index}"
        readers = _hidden(branch.mlp, f"{part}.mlp", build, stream, f"{part}.ls.gamma")
        read_norm(f"{part}.norm", readers, build, stream=stream)


def _scaling(block: Any, name: str, build: Builder, stream: str | None) -> None:
    """MLP and attention in parallel: ``in_proj`` packs hidden units, queries, keys, values (arXiv:2302.05442)."""
    units, dim = block.in_split[0] // build.order, block.in_split[1] // build.order
    normed = build.has(f"{name}.q_norm.weight")
    space = head_space(f"{name}.heads", block.num_heads, dim, build, normed=normed)
    mlp = build.space(f"{name}.mlp", "permutation", units)
    build.still(*(f"{name}.{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")))
    packed(f"{name}.in_proj", space, dim, build, start=units)
    for tensor in (f"{name}.in_proj.weight", f"{name}.in_proj.bias", f"{name}.mlp_bias"):
        if build.has(tensor):
            build.axis(tensor, 0, mlp, stop=units)
    build.linear(f"{name}.in_proj", reads=stream)
    read_norm(f"{name}.in_norm", (f"{name}.in_proj",), build, stream=stream)
    if block.out_proj is None:
        project(f"{name}.attn_out_proj", space, build, stream=stream)
        build.linear(f"{name}.mlp_out_proj", reads=mlp, writes=stream)
        build.tap(f"{name}.mlp_out_proj", "input", -1, mlp)
        proj = f"{name}.attn_out_proj"
    else:
        build.reads(f"{name}.out_proj", space, part="value", stop=dim)
        build.reads(f"{name}.out_proj", mlp, start=dim)
        build.linear(f"{name}.out_proj", writes=stream)
        build.tap(f"{name}.out_proj", "input", -1, space, part="value", stop=dim)
        build.tap(f"{name}.out_proj", "input", -1, mlp, start=dim)
        proj = None
    settle_biases(f"{name}.in_proj", dim, build, proj=proj, normed=normed, start=units)
    scaled(f"{name}.out_proj", f"{name}.ls.gamma", build, stream=stream)


_BLOCKS: dict[type[nn.Module], Callable[[Any, str, Builder, str | None], None]] = {
    Block: _plain,
    ResPostBlock: _post_norm,
    ParallelThingsBlock: _side_by_side,
    ParallelScalingBlock: _scaling,
}


def _attention(layer: Any, name: str, build: Builder, stream: str | None, scale: str) -> tuple[str, ...]:
    if type(layer) is not Attention:
        raise refuse(build, name, layer, "timm's Attention")
    attention(name, layer.num_heads, build, stream=stream, scale=scale)
    return tuple(f"{name}.{reader}" for reader in ("qkv", "gate") if build.has(f"{name}.{reader}.weight"))


def _hidden(layer: Any, name: str, build: Builder, stream: str | None, scale: str) -> tuple[str, ...]:
    hidden(layer, name, build, stream=stream, scale=scale)
    return tuple(f"{name}.{first}" for first in first_layers(layer))


def _stream_kind(model: Any, build: Builder) -> Kind | None:
    pool = model.attn_pool
    if isinstance(model.head, nn.Identity) and not isinstance(pool, AttentionPoolLatent):
        return None
    if isinstance(pool, AttentionPoolPrr):
        # It cuts the features themselves into heads: channels stay in theirs.
        return "grouped"
    affine = any(build.has(f"{norm}.weight") for norm in ("norm_pre", "patch_embed.norm"))
    affine = affine or any(isinstance(block, ResPostBlock) for block in model.blocks)
    # One LayerScale after two layers: it cannot be folded into either alone.
    shared = any(getattr(block, "mlp_out_proj", None) and hasattr(block.ls, "gamma") for block in model.blocks)
    linear = model.global_pool in ("token", "avg", "map")
    return "orthogonal" if linear and not affine and not shared else "permutation"


def _embeddings(build: Builder, stream: str | None) -> None:
    tokens = [token for token in ("cls_token", "dist_token", "reg_token", "pos_embed") if build.has(token)]
    if stream is None:
        build.note("stream fixed: the features are the output")
        build.still(*tokens, "patch_embed.proj.weight", "patch_embed.proj.bias", "norm_pre.weight", "norm_pre.bias")
        build.still("patch_embed.norm.weight", "patch_embed.norm.bias")
        return
    build.linear("patch_embed.proj", writes=stream)
    for token in tokens:
        build.axis(token, -1, stream)
    for norm in ("norm_pre", "patch_embed.norm"):
        build.norm(norm, stream)


def _ends(model: Any, build: Builder, stream: str | None) -> None:
    heads = tuple(head for head in ("head", "head_dist") if build.has(f"{head}.weight"))
    norms = [norm for norm in ("norm", "fc_norm") if build.has(f"{norm}.weight")]
    if isinstance(model.attn_pool, AttentionPoolLatent):
        stream = _attention_pool(model, build, stream, fixed=not heads)
        norms = ["fc_norm"]
    elif isinstance(model.attn_pool, AttentionPoolPrr):
        for norm in ("attn_pool.pre_norm", "attn_pool.post_norm"):
            read_norm(norm, (), build, stream=stream)
    elif model.attn_pool is not None:
        raise refuse(build, "attn_pool", model.attn_pool, "AttentionPoolLatent or AttentionPoolPrr")
    for norm in norms:
        read_norm(norm, heads, build, stream=stream)
    for head in heads:
        build.linear(head, reads=stream)


def _attention_pool(model: Any, build: Builder, stream: str | None, *, fixed: bool) -> str | None:
    """Pooling by a latent query: its own heads, MLP and residual stream, which the head reads."""
    pool, name = model.attn_pool, "attn_pool"
    dim = build.shape(f"{name}.kv.weight")[1]
    normed = build.has(f"{name}.q_norm.weight")
    space = head_space(f"{name}.heads", pool.num_heads, dim, build, normed=normed)
    build.still(*(f"{name}.{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")))
    for part in ("weight", "bias"):
        if build.has(f"{name}.q.{part}"):
            build.axis(f"{name}.q.{part}", 0, space, part="query_key")
        if build.has(f"{name}.kv.{part}"):
            build.axis(f"{name}.kv.{part}", 0, space, part="query_key", dual=True, stop=dim)
            build.axis(f"{name}.kv.{part}", 0, space, part="value", start=dim)
    # One constant vector goes into the query: any basis does; rotations keep the matching well posed.
    latent = build.space(f"{name}.latent", "heads", 1, inner=dim, maps={"latent": "orthogonal"})
    build.axis(f"{name}.latent", -1, latent, part="latent")
    build.axis(f"{name}.q.weight", 1, latent, part="latent", dual=True)
    build.tap(f"{name}.q", "input", -1, latent, part="latent")
    build.linear(f"{name}.kv", reads=stream)
    read_norm("norm", (f"{name}.kv",), build, stream=stream)
    pooled = None if fixed else build.space(POOLED, "orthogonal", pool.out_features)
    project(f"{name}.proj", space, build, stream=pooled)
    hidden(pool.mlp, f"{name}.mlp", build, stream=pooled)
    read_norm(f"{name}.norm", (f"{name}.mlp.fc1",), build, stream=pooled)
    if pooled is not None:
        build.tap(f"{name}.norm", "input", -1, pooled)
    if build.has(f"{name}.kv.bias"):
        bias = f"{build.prefix}{name}.kv.bias"
        build.step(ValueBias(bias, dim, 2 * dim, f"{build.prefix}{name}.proj"))
        if not normed:
            build.step(ZeroBias(bias, 0, dim))
    return pooled
