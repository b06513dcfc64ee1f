"""Random views of a batch of images, without leaving ``uint8``: the sites' own, and those of studies.

The sites' view is an element of D4 (a skin lesion has no upright), a shift and a change of light. Where orientation
carries meaning, turns are left out or kept within a smaller group.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional

from popmi_core.errors import ConfigError

SHIFT = 1 / 16
"""Largest shift, as a share of the image's side."""
JITTER = 0.1
"""Largest change of brightness (share of full scale) and of contrast (share of 1)."""
Views = Literal["none", "quarter", "dihedral", "rotations", "shifts", "quarter+shifts", "dihedral+shifts"]
"""``quarter``: C4; ``dihedral``: D4; ``rotations``: any angle; ``shifts``: shift, brightness and contrast, as sites."""

Images = UInt8[Tensor, "n height width 3"]


def augment(images: Images, generator: Generator) -> Images:
    """Return one random view of each image, as the sites train on.

    A view is an element of D4 (quarter turns and mirror images), a shift of at most ``SHIFT`` of a side with the
    border reflected, and a brightness and contrast change of at most ``JITTER``. Images that are not square are turned
    by 180 degrees only. The numbers are drawn where ``generator`` lives, so the views are the same on every device;
    every image's view depends on no other image.
    """
    return view(images, "dihedral+shifts", generator)


def view(images: Images, views: Views, generator: Generator) -> Images:
    """Return one random view of each image; the images themselves are left alone.

    Args:
        images: As they are stored.
        views: Which views; see ``Views``. An oblong image is turned by 180 degrees at most, except by ``rotations``.
        generator: Draws; it moves on.

    Raises:
        ConfigError: If there are no such views.
    """
    if views not in get_args(Views):
        raise ConfigError(f"augmentation {views!r} is unknown, expected one of {', '.join(get_args(Views))}.")
    if views == "none":
        return images
    if views == "rotations":
        angles = 2 * math.pi * torch.rand(len(images), generator=generator, device=generator.device)
        return rotate_by(images, angles)
    turns, _, moves = views.partition("+")
    if turns == "shifts":
        return _jitter(_place(images, None, generator, shifted=True), generator)
    placed = _place(images, _draw(images, generator, mirrors=turns == "dihedral"), generator, shifted=bool(moves))
    return _jitter(placed, generator) if moves else placed


def rotate_by(images: Images, angles: Float[Tensor, " n"]) -> Images:
    """Turn each image counter-clockwise by its angle (radians) about its exact centre.

    Bilinear, the border reflected without being repeated; at quarter turns of square images it moves pixels only.
    """
    height, width = images.shape[1:3]
    cosine, sine = (f(angles.to(images.device)).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    rows = torch.arange(height, device=images.device).view(1, -1, 1) - (height - 1) / 2
    columns = torch.arange(width, device=images.device).view(1, 1, -1) - (width - 1) / 2
    # Where the pixel comes from: the inverse turn; rows run downwards.
    source = torch.stack([cosine * columns - sine * rows, sine * columns + cosine * rows], dim=-1)
    reach = torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=images.device) / 2
    turned = functional.grid_sample(
        images.permute(0, 3, 1, 2).float(), source / reach, padding_mode="reflection", align_corners=True
    )
    return turned.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _draw(images: Images, generator: Generator, *, mirrors: bool) -> Bool[Tensor, "3 n 1 1"]:
    """Draw whether to mirror rows, to mirror columns, to transpose: D4, or its turns alone."""
    count, height, width, _ = images.shape
    drawn = torch.randint(0, 2, (3, count, 1, 1), generator=generator, device=generator.device).bool()
    if mirrors:
        return drawn
    rows, _, transpose = drawn
    # A turn is an even number of reflections.
    return torch.stack([rows, rows ^ transpose if height == width else rows, transpose])


def _place(
    images: Images, drawn: Bool[Tensor, "3 n 1 1"] | None, generator: Generator, *, shifted: bool = True
) -> Images:
    count, height, width, _ = images.shape
    device = generator.device
    rows = torch.arange(height, device=device).view(1, -1, 1).expand(count, -1, -1)
    columns = torch.arange(width, device=device).view(1, 1, -1).expand(count, -1, -1)
    if drawn is not None:
        rows = torch.where(drawn[0], height - 1 - rows, rows)
        columns = torch.where(drawn[1], width - 1 - columns, columns)
    if shifted:
        rows = _reflect(rows + _shifts(count, height, generator), height)
        columns = _reflect(columns + _shifts(count, width, generator), width)
    first = torch.arange(count, device=device).view(-1, 1, 1) * (height * width)
    source = (first + rows * width) + columns
    if drawn is not None and height == width:
        # Two mirrors and a transposition generate D4, each of the eight elements equally often.
        source = torch.where(drawn[2], source.transpose(1, 2), source)
    return images.reshape(-1, 3).index_select(0, source.reshape(-1).to(images.device)).reshape(images.shape)


def _shifts(count: int, side: int, generator: Generator) -> Int[Tensor, "n 1 1"]:
    reach = int(side * SHIFT)
    return torch.randint(-reach, reach + 1, (count, 1, 1), generator=generator, device=generator.device)


def _reflect(index: Int[Tensor, "*shape"], side: int) -> Int[Tensor, "*shape"]:
    """Fold indices that leave ``0..side-1`` by less than a side back inside, the border itself not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def _jitter(images: Images, generator: Generator) -> Images:
    drawn: Float[Tensor, "2 n 1 1 1"] = torch.rand(
        (2, images.shape[0], 1, 1, 1), generator=generator, device=generator.device
    )
    brightness, contrast = ((2 * drawn - 1) * JITTER).to(images.device)
    pixels = images.float()
    centre = pixels.mean(dim=(1, 2, 3), keepdim=True)
    changed = torch.lerp(pixels, centre, -contrast).add_(255 * brightness)
    return changed.round_().clamp_(0, 255).to(torch.uint8)
