"""Turned images as delta_rot asks for them: what changes is the angle, and as little else as can be.

An image is turned at the highest resolution there is (bicubic, about the exact centre, reflected beyond the edge) and
then reduced to the model's size with an antialiasing filter; outside a soft disk it is one constant, at 0 degrees too.
Otherwise the corners that turn in and the blur of interpolation would be measured, not the model. What blur is left is
what the floor of ``popmi_core.metrics.turning`` tells of.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from popmi_core.errors import ModelError
from popmi_core.groups.rotations import rotate

ANGLES: tuple[float, ...] = tuple(float(degrees) for degrees in range(0, 360, 10))
"""Degrees, counter-clockwise."""
_SOFT = 1 / 16


def soft_disk(side: int) -> Float64[Tensor, "side side"]:
    """Return 1 inside the disk of radius side/2 and 0 outside; a raised cosine over the last side/16 pixels of radius.

    The edge ends at the image's border, so nothing of a corner is left at any angle.
    """
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    radius = torch.sqrt(place[:, None] ** 2 + place[None, :] ** 2)
    inside = ((side / 2 - radius) / (side * _SOFT)).clamp(0, 1)
    return (1 - torch.cos(math.pi * inside)) / 2


def border_colour(images: UInt8[npt.NDArray[np.uint8], "n side side 3"]) -> tuple[float, float, float]:
    """Return the mean colour of the images beyond the disk of radius side/2, brightness 0 to 1.

    What a model of such images expects in the corners: with another constant there (grey around black digits) the
    strange frame would be measured, at every angle.

    Raises:
        ModelError: If the images are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise ModelError(
            f"images are {images.shape[1]}x{images.shape[2]} pixels, expected square ones: the disk touches all four "
            "sides. Crop or pad them."
        )
    beyond = soft_disk(images.shape[1]).numpy() == 0
    red, green, blue = (images[:, beyond].mean(axis=(0, 1), dtype=np.float64) / 255).tolist()
    return red, green, blue


def turn_images(
    images: Float[Tensor, "n c source source"], degrees: float, *, image_size: int, outside: Tensor | float = 0.5
) -> Float[Tensor, "n c image_size image_size"]:
    """Return the images turned by ``degrees``, reduced to ``image_size``, and constant outside the soft disk.

    Args:
        images: Brightness 0 to 1, at the highest resolution there is.
        degrees: Counter-clockwise.
        image_size: Pixels per side of the result; if larger than the source, the images are enlarged after turning.
        outside: Brightness outside the disk, one number or one per channel (such as ``border_colour``).

    Returns:
        Brightness 0 to 1; overshoots of the cubic kernel are cut. Quarter turns are exact moves of pixels.

    Raises:
        ModelError: As ``rotate``.
    """
    quarters, rest = divmod(degrees, 90.0)
    prepared = _masked(_resized(rotate(images, rest), image_size).clamp(0, 1), outside)
    return torch.rot90(prepared, int(quarters) % 4, (-2, -1))


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    # The readers' filter (Pillow's bilinear, widened by the scale), without rounding to bytes.
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _masked(images: Tensor, outside: Tensor | float) -> Tensor:
    disk = soft_disk(images.shape[-1]).to(images)
    constant = torch.as_tensor(outside).to(images).reshape(-1, 1, 1)
    return disk * images + (1 - disk) * constant
