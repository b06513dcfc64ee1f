"""N rotations of a square image about its exact centre; quarter turns move pixels, the angles between interpolate."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from popmi_core.errors import ModelError

Mode = Literal["bilinear", "bicubic"]

_QUARTERS = 4
# Keys (1981): with -1/2 the cubic kernel reproduces quadratic images; it is also Pillow's.
_KEYS = -0.5


class RotationAction:
    """C_N on images [..., side, side]: element i turns counter-clockwise by 360 i / N degrees.

    Only the part of an angle beyond whole quarter turns interpolates (own kernel in pixel units, so that no pixel moves
    at zero degrees, and derivatives of every kind exist), and it commutes with quarter turns up to rounding: what is
    averaged over C8 is invariant to C4 exactly and to the other angles about as well as the image is smooth. Outside
    the image its mirror image continues.

    Raises:
        ModelError: If there are fewer than one or more than 360 rotations.
    """

    def __init__(self, count: int, mode: Mode = "bicubic") -> None:
        if not 1 <= count <= 360:
            raise ModelError(f"{count} rotations were asked for, expected 1 to 360. Use 4, 8 or 16.")
        self.count, self.mode, self.name = count, mode, f"C{count}"
        self.exact = count in (1, 2, 4)

    def __len__(self) -> int:
        return self.count

    def act(self, index: int, inputs: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
        """Return the turned images.

        Raises:
            ModelError: If they are not square.
        """
        rows, side = inputs.shape[-2:]
        if rows != side:
            raise ModelError(
                f"images are {rows}x{side} pixels, expected square ones: turning changes the shape. Crop or pad them."
            )
        quarters = Fraction(_QUARTERS * (index % self.count), self.count)
        turns = int(quarters)
        if quarters != turns:
            inputs = _interpolate(inputs, quarters - turns, self.mode)
        return torch.rot90(inputs, turns, (-2, -1)) if turns else inputs

    def undo(self, index: int, features: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
        """Return the maps turned back; twice interpolated between quarter turns."""
        return self.act(self.inverse(index), features)

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""
        return (outer + inner) % self.count

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""
        return -index % self.count


def _interpolate(images: Tensor, quarters: Fraction, mode: Mode) -> Tensor:
    flat, turned = images.flatten(-2), None
    for cells, weights in _taps(quarters, images.shape[-1], mode):
        part = flat[..., torch.as_tensor(cells, device=flat.device)] * torch.as_tensor(weights).to(flat)
        turned = part if turned is None else turned + part
    assert turned is not None
    return turned.reshape(images.shape)


@lru_cache(maxsize=64)
def _taps(quarters: Fraction, side: int, mode: Mode) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]], ...]:
    """Return, tap by tap, the flat source cell of every pixel and its weight (numpy: safe to keep in any grad mode)."""
    angle, middle = float(quarters) * np.pi / 2, (side - 1) / 2
    rows, columns = np.mgrid[:side, :side].reshape(2, -1)
    right, up = columns - middle, middle - rows
    # The value at p comes from R^-1 p.
    column = right * np.cos(angle) + up * np.sin(angle) + middle
    row = middle - (up * np.cos(angle) - right * np.sin(angle))
    reach = range(2) if mode == "bilinear" else range(-1, 3)
    taps = []
    for down in reach:
        for across in reach:
            first, second = np.floor(row) + down, np.floor(column) + across
            weights = _kernel(row - first, mode) * _kernel(column - second, mode)
            taps.append((_mirrored(first, side) * side + _mirrored(second, side), weights))
    return tuple(taps)


def _kernel(distance: NDArray[np.float64], mode: Mode) -> NDArray[np.float64]:
    t = np.abs(distance)
    if mode == "bilinear":
        return np.maximum(0.0, 1.0 - t)
    near = (_KEYS + 2) * t**3 - (_KEYS + 3) * t**2 + 1
    far = _KEYS * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _mirrored(cells: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    inside = np.mod(cells.astype(np.int64), 2 * side)
    return np.minimum(inside, 2 * side - 1 - inside)
