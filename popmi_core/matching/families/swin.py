"""Swin (V1): a basis for every stage, tied to the next only by the layer that merges patches.

The affine norm after the patch embedding writes the first stage's stream, which leaves permutations; the later stages
rotate (``R 1 = 1``). Patch merging reads four neighbours at once, ``I4 (x) R`` (fewer where PREA ties them); it has no
bias, so that its norm keeps beta. Tables of relative positions follow the heads. Liu et al. 2021, arXiv:2103.14030.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import nn

from popmi_core.matching.builder import Builder
from popmi_core.matching.families.transformer import attention, first_layers, hidden, read_norm, refuse
from popmi_core.matching.symmetry import Kind


def knows(model: nn.Module) -> bool:
    """Whether this file describes the model."""
    return type(model) is SwinTransformer


def describe(model: Any, build: Builder) -> None:
    """Describe a SwinTransformer of timm.

    Raises:
        ModelError: If it has a part that is not known here; the message names it.
    """

    def merging(name: str, before: str | None, stream: str | None) -> None:
        del stream
        read_norm(f"{name}.norm", (f"{name}.reduction",), build, stream=before, repeat=_neighbours(name, before, build))

    before = stages(model, build, space=_stage_space, block=_block, merger=PatchMerging, norm=merging)
    classify(model, build, before)
    read_norm("norm", ("head.fc",), build, stream=before)


def stages(
    model: Any,
    build: Builder,
    *,
    space: Callable[[Any, int, Builder], str | None],
    block: Callable[[Any, str, Builder, str | None], None],
    merger: type[nn.Module],
    norm: Callable[[str, str | None, str | None], None],
) -> str | None:
    """Describe the embedding and every stage of a Swin and return the last stage's stream.

    Args:
        space: Makes a stage's stream.
        block: Describes one block, by name, on its stream.
        merger: The layer that merges patches between two stages.
        norm: Describes that layer's norm: the layer's name, the stream before, the stream after.

    Raises:
        ModelError: If something else stands between two stages.
    """
    before: str | None = None
    for index, stage in enumerate(model.layers):
        name = f"layers.{index}"
        stream = space(model, index, build)
        if index == 0:
            embeddings(build, stream)
        elif not isinstance(stage.downsample, merger):
            raise refuse(build, f"{name}.downsample", stage.downsample, "timm's PatchMerging")
        else:
            repeat = _neighbours(f"{name}.downsample", before, build)
            build.linear(f"{name}.downsample.reduction", reads=before, writes=stream, repeat=repeat)
            norm(f"{name}.downsample", before, stream)
        for number, one in enumerate(stage.blocks):
            block(one, f"{name}.blocks.{number}", build, stream)
        before = stream
    return before


def _neighbours(name: str, before: str | None, build: Builder) -> int:
    """Return how many patches one merged patch reads apart: four, or fewer where PREA ties them."""
    if before is None:
        return 1
    return build.shape(f"{name}.reduction.weight")[1] // build.spaces[build.prefix + before].width()


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
