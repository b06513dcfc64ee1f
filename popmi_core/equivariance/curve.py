"""The rotation curve: a model's logits, and invariant features of the same images, at every angle of the circle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn

from popmi_core.equivariance.rings import ring_statistics
from popmi_core.equivariance.turning import ANGLES, border_colour, turn_images
from popmi_core.errors import ModelError
from popmi_core.models.inputs import channel_statistics

Numbers = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Curve:
    """A model's answers to turned images, what ``popmi_core.metrics.turning.turning_figures`` takes.

    Attributes:
        angles: Degrees, counter-clockwise; the first is 0.
        logits: ``float64 [angles, n, classes]``.
        rings: Rotation-invariant features of the same turned images, ``float64 [angles, n, features]``.
    """

    angles: tuple[float, ...]
    logits: Float64[Numbers, "angles n classes"]
    rings: Float64[Numbers, "angles n features"]


def rotation_curve(
    model: nn.Module,
    images: UInt8[Bytes, "n source source 3"],
    *,
    image_size: int,
    angles: Sequence[float] = ANGLES,
    outside: Sequence[float] | None = None,
    batch_size: int = _BATCH,
    progress: Callable[[float], None] | None = None,
) -> Curve:
    """Run the model on the images turned to every angle.

    The model is run as it stands, on the device where its weights are: put it in evaluation mode first.

    Args:
        model: Normalised images -> logits.
        images: At their highest native resolution, as they are stored.
        image_size: Pixels per side the model takes.
        angles: Degrees; the first is the upright one.
        outside: Colour outside the soft disk, 0 to 1; None is the mean colour of these images beyond it.
        batch_size: Images at a time.
        progress: Told the share that is done, 0 to 1.

    Raises:
        ModelError: If the images are not square RGB bytes, or there is none.
    """
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3 and len(images) > 0
    if not fits or images.shape[1] != images.shape[2]:
        raise ModelError(
            f"images to turn are {images.dtype} of shape {images.shape}, expected at least one of uint8 [n, side, "
            "side, 3]. Pass square images as they are stored."
        )
    colour = border_colour(images) if outside is None else outside
    logits, rings = [], []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(images[start : start + batch_size])
            views = list(turned_views(model, part, image_size, angles, outside=colour))
            logits.append(torch.stack([model(view).double().cpu() for view in views]))
            rings.append(_rings(views, angles))
            if progress is not None:
                progress(min(1.0, (start + batch_size) / len(images)))
    return Curve(tuple(map(float, angles)), torch.cat(logits, 1).numpy(), torch.cat(rings, 1).numpy())


def turned_views(
    model: nn.Module,
    images: UInt8[Tensor, "n source source 3"],
    image_size: int,
    angles: Sequence[float],
    *,
    outside: Sequence[float],
) -> Iterator[Float[Tensor, "n 3 image_size image_size"]]:
    """Yield the images as the model sees them (normalised) at every angle, in the order of ``angles``."""
    like = next(model.parameters(), torch.zeros(()))
    mean, std = (part.to(like) for part in channel_statistics(model))
    pixels = images.to(like.device).permute(0, 3, 1, 2).contiguous().to(like.dtype) / 255
    # Angles a quarter apart share one interpolation: the rest of the turn only moves pixels.
    views: dict[float, Tensor] = {}
    for angle in angles:
        quarters, rest = divmod(float(angle), 90.0)
        if rest not in views:
            turned = turn_images(pixels, rest, image_size=image_size, outside=torch.tensor(outside, dtype=pixels.dtype))
            views[rest] = (turned - mean) / std
        yield torch.rot90(views[rest], int(quarters) % 4, (-2, -1))


def _rings(views: Sequence[Tensor], angles: Sequence[float]) -> Float64[Tensor, "angles n features"]:
    """Return the invariant features; quarter turns leave them as they are, so each is computed once a quarter."""
    found: dict[float, Tensor] = {}
    for view, angle in zip(views, angles, strict=True):
        if (rest := float(angle) % 90.0) not in found:
            found[rest] = ring_statistics(view.double()).cpu()
    return torch.stack([found[float(angle) % 90.0] for angle in angles])
