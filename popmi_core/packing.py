"""Many arrays as one block of bytes, for the way between server and site.

Flower sends every array as two objects or more, and each object is a request of its own, two at a time: over a long
line that is waiting for the most part. One block is one object for every 5 MB. The format is safetensors; the arrays'
order travels along, because sums of floats depend on it, and a checksum of their names, types, shapes and bytes,
because a flipped bit in a weight is still a weight.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from popmi_core.errors import UpdateError

PACKED = "safetensors"
"""The only name in a record of packed arrays, and how Flower's array says what its bytes are."""
_ORDER, _DIGEST = "order", "sha256"


def pack(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Return arrays by name as the bytes of a safetensors file."""
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(whole, metadata={_ORDER: json.dumps(list(whole)), _DIGEST: _digest(whole)})


def unpack(block: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of ``pack``, in the order they had; they are views of ``block`` and cannot be written to.

    Raises:
        UpdateError: If the bytes are not what ``pack`` makes.
    """
    try:
        arrays = load(block)
        (length,) = struct.unpack("<Q", block[:8])
        notes = json.loads(block[8 : 8 + length])["__metadata__"]
        order = json.loads(notes[_ORDER])
        if sorted(order) != sorted(arrays):
            raise ValueError("the order names other arrays")
        arrays = {name: arrays[name] for name in order}
        if _digest(arrays) != notes[_DIGEST]:
            raise ValueError("the checksum is another")
        return arrays
    except Exception as error:
        # Whatever a stranger's bytes make of a decoder is that stranger's fault alone.
        raise UpdateError(
            f"{len(block)} bytes cannot be decoded as packed tensors (safetensors, sha256). The payload is damaged."
        ) from error


def _digest(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
