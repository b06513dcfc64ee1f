"""Reading an image between its pixels: one cubic kernel in pixel units, and its exact derivative.

Coordinates are rows and columns counted from 0, never a grid normalised to -1..1: there, rounding picks the wrong cell
for many pixels that should be hit exactly, and a bilinear derivative jumps at every pixel.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_TAPS = 4


def cubic_weights(fraction: Float64[Tensor, " points"]) -> Float64[Tensor, "4 points"]:
    """Return the weights of the pixels at -1, 0, 1, 2 around each point (Keys 1981, a = -1/2, the Catmull-Rom spline).

    They sum to one and reproduce parabolas; at fraction 0 they are exactly 0, 1, 0, 0.
    """
    t = fraction
    return torch.stack(
        [
            t * (t * (2 - t) - 1) / 2,
            (t * t * (3 * t - 5) + 2) / 2,
            t * (t * (4 - 3 * t) + 1) / 2,
            t * t * (t - 1) / 2,
        ]
    )


def cubic_slopes(fraction: Float64[Tensor, " points"]) -> Float64[Tensor, "4 points"]:
    """Return the derivatives of ``cubic_weights``, per pixel; at fraction 0 the central difference -1/2, 0, 1/2, 0.

    The kernel has one continuous derivative, so a slope does not depend on which cell a pixel's edge is counted to.
    """
    t = fraction
    return torch.stack(
        [
            (t * (4 - 3 * t) - 1) / 2,
            t * (9 * t - 10) / 2,
            (t * (8 - 9 * t) + 1) / 2,
            t * (3 * t - 2) / 2,
        ]
    )


def sample(
    images: Float[Tensor, "n c rows cols"],
    row: Float64[Tensor, " points"],
    col: Float64[Tensor, " points"],
) -> Float[Tensor, "n c points"]:
    """Return the images at these coordinates (pixels); beyond the edge they are reflected at the edge's outer line.

    Coordinates may lie where the images do or on the CPU, which costs nothing to look at; the answer is where the
    images are.
    """
    (first_row, across), (first_col, along) = _cell(row), _cell(col)
    return _weigh(images, first_row, first_col, cubic_weights(across), cubic_weights(along))


def sample_slope(
    images: Float[Tensor, "n c rows cols"],
    row: Float64[Tensor, " points"],
    col: Float64[Tensor, " points"],
    row_speed: Float64[Tensor, " points"],
    col_speed: Float64[Tensor, " points"],
) -> Float[Tensor, "n c points"]:
    """Return how fast ``sample`` changes as the coordinates move at these speeds (pixels per unit): exact.

    Devices are as for ``sample``.
    """
    (first_row, across), (first_col, along) = _cell(row), _cell(col)
    down = _weigh(images, first_row, first_col, row_speed * cubic_slopes(across), cubic_weights(along))
    return down + _weigh(images, first_row, first_col, cubic_weights(across), col_speed * cubic_slopes(along))


def _cell(coordinate: Tensor) -> tuple[Int[Tensor, " points"], Float64[Tensor, " points"]]:
    cell = coordinate.floor()
    return cell.long(), coordinate - cell


def _reflect(index: Int[Tensor, " points"], size: int) -> Int[Tensor, " points"]:
    """Fold indices of any distance back into 0..size-1; the edge pixel is repeated (half-sample symmetric)."""
    folded = index.remainder(2 * size)
    return torch.where(folded < size, folded, 2 * size - 1 - folded)


def _weigh(images: Tensor, first_row: Tensor, first_col: Tensor, across: Tensor, along: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    flat = images.flatten(-2)
    rows = [_reflect(first_row + tap - 1, height) * width for tap in range(_TAPS)]
    cols = [_reflect(first_col + tap - 1, width) for tap in range(_TAPS)]
    total = torch.zeros_like(flat[..., :1]).expand(*flat.shape[:-1], len(first_row)).clone()
    for row, weight in zip(rows, across, strict=True):
        for col, share in zip(cols, along, strict=True):
            factor = weight * share
            if bool(factor.any()):  # on exact pixels 15 of 16 taps weigh nothing
                total += factor.to(flat) * flat[..., (row + col).to(flat.device)]
    return total
