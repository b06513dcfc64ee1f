"""Rotations of a square image about its exact centre; quarter turns move pixels, the angles between interpolate."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.groups.sampler import sample

_QUARTER = 90.0


def rotate(images: Float[Tensor, "*batch side side"], degrees: float) -> Float[Tensor, "*batch side side"]:
    """Return the images turned counter-clockwise about their exact centre, bicubic, reflected beyond the edge.

    Quarter turns move pixels (rot90), so ``rotate(x, a + 90)`` is ``rot90(rotate(x, a))`` to the last bit, and 0 is x.

    Raises:
        ModelError: If the images are not square, or the angle is not finite.
    """
    rows, side = images.shape[-2:]
    if rows != side or not math.isfinite(degrees):
        raise ModelError(
            f"cannot turn images of {rows}x{side} pixels by {degrees} degrees, expected square ones and a finite "
            "angle: turning changes the shape. Crop or pad them."
        )
    quarters, rest = divmod(degrees, _QUARTER)
    if rest:
        row, col = (torch.from_numpy(places).to(images.device) for places in _turned_grid(side, math.radians(rest)))
        images = sample(images, row, col).unflatten(-1, (side, side))
    turns = int(quarters) % 4
    return torch.rot90(images, turns, (-2, -1)) if turns else images


class RotationAction:
    """C_N on images [..., side, side]: element i turns counter-clockwise by 360 i / N degrees.

    Only the part of an angle beyond whole quarter turns interpolates, and it commutes with quarter turns up to
    rounding: what is averaged over C8 is invariant to C4 exactly and to the other angles about as well as the image is
    smooth. Outside the image its mirror image continues.

    Raises:
        ModelError: If there are fewer than one or more than 360 rotations.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= 360:
            raise ModelError(f"{count} rotations were asked for, expected 1 to 360. Use 4, 8 or 16.")
        self.count, self.name = count, f"C{count}"
        self.exact = count in (1, 2, 4)

    def __len__(self) -> int:
        return self.count

    def act(self, index: int, inputs: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
        """Return the turned images.

        Raises:
            ModelError: If they are not square.
        """
        return rotate(inputs, float(Fraction(360 * (index % self.count), self.count)))

    def undo(self, index: int, features: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
        """Return the maps turned back; twice interpolated between quarter turns."""
        return self.act(self.inverse(index), features)

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""
        return (outer + inner) % self.count

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""
        return -index % self.count


@lru_cache(maxsize=64)
def _turned_grid(side: int, radians: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return row and column of the source of every pixel, row-major (numpy: safe to keep in any grad mode)."""
    centre = (side - 1) / 2
    row, col = np.mgrid[:side, :side].reshape(2, -1) - centre
    cosine, sine = math.cos(radians), math.sin(radians)
    # Rows run downwards: the value at p comes from R^-1 p.
    return cosine * row + sine * col + centre, cosine * col - sine * row + centre
