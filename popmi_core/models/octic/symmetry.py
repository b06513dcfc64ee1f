"""Which changes of basis leave an octic transformer's function alone and commute with D4.

A map of fields commutes with the group if it moves whole fields: copies of each irreducible together. So the stream's
fields are rotated by one matrix on all slabs, hidden fields change places, heads too, and inside a head every
irreducible has a basis of its own for queries and keys, and one for values. Free coefficients hold nothing that could
break the symmetry, so every move, and every mean of models moved this way, is exactly equivariant.

What commutes with D4 beyond that is left out: another rotation for each irreducible of the stream (patch kernels and
positions are stored by fields, not by irreducibles), and the eight shifts of a hidden field.
"""

from __future__ import annotations

from typing import Any

from popmi_core.groups.octic import LINES

# The Builder of popmi_core.matching, which lies above this package.
Builder = Any
STREAM = "stream"


def describe_octic(build: Builder, *, depth: int, heads: int, copies: int) -> None:
    """Write the description of an octic transformer of ``depth`` blocks, ``copies`` fields wide."""
    build.space(STREAM, "orthogonal", copies)
    for tensor in ("patch_embed.proj", "patch_embed.bias"):
        build.axis(tensor, 0, STREAM)
    for tensor in ("pos_embed.table", "cls_token"):
        if build.has(tensor):
            build.axis(tensor, -1, STREAM)
    for index in range(depth):
        _attention(f"blocks.{index}", heads, copies, build)
        _hidden(f"blocks.{index}.mlp.fc1", f"blocks.{index}.mlp", build)
        build.tap(f"blocks.{index}", "output", -1, STREAM, stop=copies)
        _linear(f"blocks.{index}.mlp.fc2", build, reads=f"blocks.{index}.mlp", writes=STREAM)
    _hidden("readout.fc", "readout", build)
    if build.has("head.weight"):
        build.linear("head", reads="readout")
        build.tap("head", "input", -1, "readout")


def _hidden(layer: str, name: str, build: Builder) -> None:
    build.space(name, "permutation", build.shape(f"{layer}.bias")[0])
    _linear(layer, build, reads=STREAM, writes=name)


def _linear(layer: str, build: Builder, *, reads: str | None = None, writes: str | None = None) -> None:
    """Say which fields a layer reads (axis 1) and writes (axis 0, and bias): E has two copies for each field."""
    for tensor, repeat in (*((line, 1) for line in LINES), ("e", 2)):
        if writes is not None:
            build.axis(f"{layer}.{tensor}", 0, writes, repeat=repeat)
        if reads is not None:
            build.axis(f"{layer}.{tensor}", 1, reads, dual=True, repeat=repeat)
    if writes is not None:
        build.axis(f"{layer}.bias", 0, writes)


def _attention(block: str, heads: int, copies: int, build: Builder) -> None:
    """Describe heads: their order, and inside each a basis of every line and of either copy of E, for both components.

    Whole matrices of both copies of E would commute too: this is the part that a space of equal bases can say.
    """
    qkv, proj = f"{block}.attn.qkv", f"{block}.attn.proj"
    _linear(qkv, build, reads=STREAM)
    _linear(proj, build, writes=STREAM)
    bases = [(line, line, copies, 0) for line in LINES] + [("e", f"e{i}", 2 * copies, i * copies) for i in (0, 1)]
    maps = {f"{name}.{part}": "linear" for _, name, _, _ in bases for part in ("query_key", "value")}
    space = build.space(f"{block}.heads", "heads", heads, inner=copies // heads, maps=maps)
    for weight, name, apart, start in bases:
        for tensor in (f"{qkv}.{weight}", *([f"{qkv}.bias"] if name == "a1" else [])):
            for index, (part, dual) in enumerate((("query_key", False), ("query_key", True), ("value", False))):
                at = index * apart + start
                build.axis(tensor, 0, space, part=f"{name}.{part}", dual=dual, start=at, stop=at + copies)
        build.axis(f"{proj}.{weight}", 1, space, part=f"{name}.value", dual=True, start=start, stop=start + copies)
