"""Swin (V1): a basis for every stage, tied to the next only by the layer that merges patches.

The affine norm after the patch embedding writes the first stage's stream, which leaves permutations; the later stages
rotate (``R 1 = 1``). Patch merging reads four neighbours at once, ``I4 (x) R``; it has no bias, so that its norm keeps
beta. Tables of relative positions follow the heads. Liu et al. 2021, arXiv:2103.14030.
"""

from __future__ import annotations

from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.transformer import attention, first_layers, hidden, read_norm, refuse
from popmi_core.matching.symmetry import Kind

_NEIGHBOURS = 4


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return type(model) is SwinTransformer


def describe(model: Any, build: Builder) -> None:
    """Describe a SwinTransformer of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """
    before: str | None = None
    for index, stage in enumerate(model.layers):
        name = f"layers.{index}"
        stream = _stage_space(model, index, build)
        if index == 0:
            embeddings(build, stream)
        elif not isinstance(stage.downsample, PatchMerging):
            raise refuse(build, f"{name}.downsample", stage.downsample, "timm's PatchMerging")
        else:
            merging = f"{name}.downsample"
            build.linear(f"{merging}.reduction", reads=before, writes=stream, repeat=_NEIGHBOURS)
            read_norm(f"{merging}.norm", (f"{merging}.reduction",), build, stream=before, repeat=_NEIGHBOURS)
        for number, block in enumerate(stage.blocks):
            _block(block, f"{name}.blocks.{number}", build, stream)
        before = stream
    classify(model, build, before)
    read_norm("norm", ("head.fc",), build, stream=before)


def _stage_space(model: Any, index: int, build: Builder) -> str | None:
    last = index == len(model.layers) - 1
    if last and isinstance(model.head.fc, nn.Identity):
        build.note("last stage's stream fixed: the features are the output")
        return None
    affine = index == 0 and build.has("patch_embed.norm.weight")
    ends = last and model.head.global_pool.pool_type not in ("avg", "")
    kind: Kind = "permutation" if affine or ends else "orthogonal"
    blocks = model.layers[index].blocks
    width = blocks[0].dim if len(blocks) else model.layers[index].dim
    return build.space(f"layers.{index}.stream", kind, width)


def embeddings(build: Builder, stream: str | None) -> None:
    """Describe the patch embedding, whose norm (if any) writes the first stage's stream."""
    build.linear("patch_embed.proj", writes=stream)
    if stream is None:
        build.still("patch_embed.proj.weight", "patch_embed.norm.weight", "patch_embed.norm.bias")
    else:
        build.norm("patch_embed.norm", stream)


def classify(model: Any, build: Builder, stream: str | None) -> None:
    """Describe the head, which pools and reads the last stage.

    Raises:
        ModelError: If it is another kind of head.
    """
    if not isinstance(model.head, ClassifierHead):
        raise refuse(build, "head", model.head, "timm's ClassifierHead")
    if build.has("head.fc.weight"):
        build.linear("head.fc", reads=stream)


def _block(block: Any, name: str, build: Builder, stream: str | None) -> None:
    if type(block) is not SwinTransformerBlock:
        raise refuse(build, name, block, "timm's SwinTransformerBlock")
    if type(block.attn) is not WindowAttention:
        raise refuse(build, f"{name}.attn", block.attn, "timm's WindowAttention")
    table = f"{name}.attn.relative_position_bias_table"
    attention(f"{name}.attn", block.attn.num_heads, build, stream=stream, positions=table)
    read_norm(f"{name}.norm1", (f"{name}.attn.qkv",), build, stream=stream, pads=_pads(block))
    hidden(block.mlp, f"{name}.mlp", build, stream=stream)
    read_norm(f"{name}.norm2", tuple(f"{name}.mlp.{i}" for i in first_layers(block.mlp)), build, stream=stream)
    if stream is not None:
        build.tap(name, "output", -1, stream)


def _pads(block: Any) -> bool:
    """Whether windows do not tile the map: zeros are added after the norm, and these tokens never saw beta."""
    sizes = zip(block.input_resolution, block.window_size, strict=True)
    return bool(block.dynamic_mask) or any(size % window for size, window in sizes)
