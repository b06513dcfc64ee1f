"""Swin V2: norms write the stream, so that every stage is permuted; queries and keys are compared by their angle.

Cosine attention leaves rotations of queries and keys inside a head; its temperature and its biases by relative position
(a small ReLU network) follow the heads. Liu et al. 2022, arXiv:2111.09883.
"""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.swin import classify, stages
from popmi_core.matching.families.transformer import hidden, packed, project, read_norm, refuse
from popmi_core.matching.steps import ValueBias


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model (Swin V2-CR is another)."""
    return type(model) is SwinTransformerV2


def describe(model: Any, build: Builder) -> None:
    """Describe a SwinTransformerV2 of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """

    def merging(name: str, before: str | None, stream: str | None) -> None:
        del before
        read_norm(f"{name}.norm", (), build, stream=stream)

    before = stages(model, build, space=_stage_space, block=_block, merger=PatchMerging, norm=merging)
    read_norm("norm", (), build, stream=before)
    classify(model, build, before)


def _stage_space(model: Any, index: int, build: Builder) -> str | None:
    if index == len(model.layers) - 1 and isinstance(model.head.fc, nn.Identity):
        build.note("last stage's stream fixed: the features are the output")
        return None
    return build.space(f"layers.{index}.stream", "permutation", model.layers[index].blocks[0].norm1.normalized_shape[0])


def _block(block: Any, name: str, build: Builder, stream: str | None) -> None:
    if type(block) is not SwinTransformerV2Block:
        raise refuse(build, name, block, "timm's SwinTransformerV2Block")
    if type(block.attn) is not WindowAttention:
        raise refuse(build, f"{name}.attn", block.attn, "timm's WindowAttention of Swin V2")
    _attention(block.attn, f"{name}.attn", build, stream)
    hidden(block.mlp, f"{name}.mlp", build, stream=stream)
    for norm in ("norm1", "norm2"):
        read_norm(f"{name}.{norm}", (), build, stream=stream)
    if stream is not None:
        build.tap(name, "output", -1, stream)


def _attention(layer: Any, name: str, build: Builder, stream: str | None) -> None:
    heads, dim = layer.num_heads, layer.dim
    space = f"{name.removesuffix('.attn')}.heads"
    build.space(space, "heads", heads, inner=dim // heads, maps={"query_key": "orthogonal", "value": "linear"})
    packed(f"{name}.qkv", space, dim, build)
    build.linear(f"{name}.qkv", reads=stream)
    build.axis(f"{name}.logit_scale", 0, space)
    if build.has(f"{name}.q_bias"):
        build.axis(f"{name}.q_bias", 0, space, part="query_key")
        build.axis(f"{name}.v_bias", 0, space, part="value")
        build.step(ValueBias(f"{build.prefix}{name}.v_bias", 0, dim, f"{build.prefix}{name}.proj"))
    project(f"{name}.proj", space, build, stream=stream)
    positions = f"{name}.cpb_mlp"
    build.space(positions, "permutation", build.shape(f"{positions}.0.weight")[0], rescalable=True)
    build.linear(f"{positions}.0", writes=positions)
    build.linear(f"{positions}.2", reads=positions, writes=space)
    build.tap(f"{positions}.2", "input", -1, positions)
