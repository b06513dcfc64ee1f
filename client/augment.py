"""Random views of a batch of images, without leaving ``uint8``."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

SHIFT = 1 / 16
"""Largest shift, as a share of the image's side."""
JITTER = 0.1
"""Largest change of brightness (share of full scale) and of contrast (share of 1)."""


def augment(images: UInt8[Tensor, "n height width 3"], generator: Generator) -> UInt8[Tensor, "n height width 3"]:
    """Return one random view of each image.

    A view is an element of D4 (quarter turns and mirror images; a skin lesion has no upright), a shift of at most
    ``SHIFT`` of a side with the border reflected, and a brightness and contrast change of at most ``JITTER``. Images
    that are not square are turned by 180 degrees only. The numbers are drawn where ``generator`` lives, so the views
    are the same on every device; every image's view depends on no other image.
    """
    turned = _turn_and_shift(images, generator)
    return _jitter(turned, generator)


def _turn_and_shift(images: UInt8[Tensor, "n h w 3"], generator: Generator) -> UInt8[Tensor, "n h w 3"]:
    count, height, width, _ = images.shape
    mirror_rows, mirror_columns, transpose = torch.randint(
        0, 2, (3, count, 1, 1), generator=generator, device=generator.device
    ).bool()
    rows = torch.arange(height, device=generator.device).view(1, -1, 1)
    columns = torch.arange(width, device=generator.device).view(1, 1, -1)
    rows = torch.where(mirror_rows, height - 1 - rows, rows) + _shifts(count, height, generator)
    columns = torch.where(mirror_columns, width - 1 - columns, columns) + _shifts(count, width, generator)
    first = torch.arange(count, device=generator.device).view(-1, 1, 1) * (height * width)
    source = (first + _reflect(rows, height) * width) + _reflect(columns, width)
    if height == width:
        # Two mirrors and a transposition generate D4, each of the eight elements equally often.
        source = torch.where(transpose, source.transpose(1, 2), source)
    return images.reshape(-1, 3).index_select(0, source.reshape(-1).to(images.device)).reshape(images.shape)


def _shifts(count: int, side: int, generator: Generator) -> Int[Tensor, "n 1 1"]:
    reach = int(side * SHIFT)
    return torch.randint(-reach, reach + 1, (count, 1, 1), generator=generator, device=generator.device)


def _reflect(index: Int[Tensor, "*shape"], side: int) -> Int[Tensor, "*shape"]:
    """Fold indices that leave ``0..side-1`` by less than a side back inside, the border itself not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def _jitter(images: UInt8[Tensor, "n h w 3"], generator: Generator) -> UInt8[Tensor, "n h w 3"]:
    drawn: Float[Tensor, "2 n 1 1 1"] = torch.rand(
        (2, images.shape[0], 1, 1, 1), generator=generator, device=generator.device
    )
    brightness, contrast = ((2 * drawn - 1) * JITTER).to(images.device)
    pixels = images.float()
    centre = pixels.mean(dim=(1, 2, 3), keepdim=True)
    changed = torch.lerp(pixels, centre, -contrast).add_(255 * brightness)
    return changed.round_().clamp_(0, 255).to(torch.uint8)
