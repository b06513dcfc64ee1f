"""Many arrays as one block of bytes (popmi_core/packing.py)."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from popmi_core.errors import UpdateError
from popmi_core.packing import pack, unpack

KINDS = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
ARRAYS = KINDS.flatmap(lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=5))
def test_names_order_types_shapes_and_bytes_survive(arrays):
    there = unpack(pack(arrays))
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        assert (there[name].dtype, there[name].shape) == (array.dtype, array.shape)
        assert there[name].tobytes() == array.tobytes()


def test_an_array_that_lies_crosswise_in_memory_survives():
    turned = np.arange(6.0).reshape(2, 3).T
    assert unpack(pack({"a": turned}))["a"].tolist() == turned.tolist()


def test_a_model_weighs_its_bytes_and_a_short_header():
    block = pack({f"layer {number}": np.zeros(1000, np.float32) for number in range(10)})
    assert 40_000 < len(block) < 42_000


def header_of(block):
    (length,) = struct.unpack("<Q", block[:8])
    return json.loads(block[8 : 8 + length])


BLOCK = pack({"b": np.arange(4.0), "a": np.arange(3)})


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"PK\x03\x04 a zip",
        BLOCK[:-1],
        BLOCK + b"x",
        bytes(byte ^ 0xFF for byte in BLOCK[:16]) + BLOCK[16:],
        struct.pack("<Q", 2**60) + BLOCK[8:],
        save({"a": np.arange(3)}),
        save({"a": np.arange(3)}, metadata={"order": '["a", "b"]'}),
        save({"a": np.arange(3)}, metadata={"order": '["a", "a"]'}),
        save({"a": np.arange(3)}, metadata={"order": "no json"}),
        BLOCK[:-5] + bytes([BLOCK[-5] ^ 1]) + BLOCK[-4:],
        BLOCK.replace(b"I64", b"F64"),
        save({"a": np.arange(3)}, metadata={"order": '["a"]'}),
    ],
    ids=[
        *("nothing", "zip", "short", "long", "flipped", "huge header", "no order", "more", "twice", "no json"),
        *("one bit of a weight", "another type", "no checksum"),
    ],
)
def test_what_pack_did_not_make_is_refused(broken):
    with pytest.raises(UpdateError, match=r"bytes cannot be decoded as packed tensors \(safetensors"):
        unpack(broken)


def test_the_header_says_what_is_inside():
    assert set(header_of(BLOCK)) == {"__metadata__", "a", "b"}
