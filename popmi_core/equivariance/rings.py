"""Rotation-invariant features of an image: brightness, edges and spots, pooled in rings about the centre."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

_MOST = 8
_PIXELS_A_RING = 2
_SCALE = 1.0
_REACH = 4


def ring_windows(side: int) -> Float64[Tensor, "rings side side"]:
    """Return up to eight overlapping rings that cover the disk of radius side/2; each window sums to one.

    Windows are hats over the radius, at least two pixels apart: with sharp edges, pixels would jump between rings as
    the image turns.
    """
    rings = max(1, min(_MOST, side // (2 * _PIXELS_A_RING)))
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    radius = torch.sqrt(place[:, None] ** 2 + place[None, :] ** 2) * rings / (side / 2)
    centres = torch.arange(rings, dtype=torch.float64)[:, None, None] + 0.5
    windows = (1 - (radius - centres).abs()).clamp(min=0)
    return windows / windows.sum(dim=(1, 2), keepdim=True)


def ring_statistics(images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n features"]:
    """Return mean and standard deviation, in every ring, of three maps of every channel: ``features = 6 c rings``.

    The maps are the image, the length of its gradient and its Laplacian, the last two at a Gaussian scale of one
    pixel: about what a network's first layer can see, and on the plane unchanged by rotation (the maps turn with the
    image, ring and statistics stay). On the grid, interpolation changes them: brightness moves, contrast is lost.
    """
    windows = ring_windows(images.shape[-1]).to(images)
    maps = torch.cat([images, *_local_maps(images)], dim=1)
    mean = torch.einsum("ncij,rij->ncr", maps, windows)
    square = torch.einsum("ncij,rij->ncr", maps.square(), windows)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1)


def _local_maps(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient length and Laplacian of the images smoothed with a Gaussian."""
    place = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    smooth = torch.exp(-place.square() / (2 * _SCALE**2))
    smooth = smooth / smooth.sum()
    slope, bend = -place / _SCALE**2 * smooth, (place.square() / _SCALE**4 - 1 / _SCALE**2) * smooth
    # Beyond the border the image goes on as its edge: inside the soft disk's border that is the constant outside.
    padded = functional.pad(images, [_REACH] * 4, mode="replicate")
    across, down = _separable(padded, smooth, slope), _separable(padded, slope, smooth)
    laplacian = _separable(padded, smooth, bend) + _separable(padded, bend, smooth)
    return (across.square() + down.square()).sqrt(), laplacian


def _separable(padded: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    channels = padded.shape[1]
    column = vertical.to(padded).view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    row = horizontal.to(padded).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return functional.conv2d(functional.conv2d(padded, column, groups=channels), row, groups=channels)
