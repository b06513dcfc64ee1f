"""A site's own class mix: counted for the server if asked, and worked into the answers at this site.

A model trained by all sites answers as if an image came from all of them together. At one site it comes from there:
by Bayes' rule every class is more likely by ``p_site(class) / p_all(class)`` (Saerens, Latinne and Decaestecker 2002,
Neural Computation 14(1), equation 2.4). The model stays as it is, and so do its answers elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import UpdateError
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.metrics.suppression import classes_to_tell


class OwnPrior(nn.Module):
    """A model whose logits are shifted, class by class."""

    def __init__(self, model: nn.Module, shift: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.shift = torch.tensor(shift, dtype=torch.float64)
        self.pretrained_cfg = getattr(model, "pretrained_cfg", None)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the shifted logits, in float64."""
        logits: Tensor = self.model(images)
        return logits.double() + self.shift.to(logits.device)


def class_counts(data: ImageSet, num_classes: int) -> tuple[int, ...]:
    """Return the number of images of every class as it may leave the site: below ``MIN_CELL`` it is told as 0."""
    counts = np.bincount(data.targets, minlength=num_classes)
    return tuple(int(count) if count >= MIN_CELL else 0 for count in counts)


def class_table(data: SiteData, *, private: bool) -> dict[str, tuple[int | None, ...]]:
    """Return the number of images of every class in each split as it may leave the site; None where it may not.

    Hidden are counts below ``MIN_CELL``, zero included, and further ones until known sums give none away: the same as
    in a score summary. Of training images that a privacy budget protects (``private``) nothing is counted.
    """
    splits = {"val": data.val, "test": data.test} | ({} if private else {"train": data.train})
    return {split: _tell(images.counts(len(data.classes))) for split, images in splits.items() if len(images)}


def _tell(counts: npt.NDArray[np.int64]) -> tuple[int | None, ...]:
    told = classes_to_tell(counts, min_cell=MIN_CELL)
    return tuple(int(count) if known else None for count, known in zip(counts, told, strict=True))


def prior_shift(own: Sequence[int], together: Sequence[int]) -> tuple[float, ...]:
    """Return ``log p_site(class) - log p_all(class)``, one image added to every class (Laplace).

    Raises:
        UpdateError: If the server's counts are not of this site's classes.
    """
    if len(own) != len(together):
        raise UpdateError(
            f"the server counted images of {len(together)} classes, expected {len(own)}. Check that server and site "
            "run the same POPMI version."
        )
    sizes = [sum(counts) + len(counts) for counts in (own, together)]
    return tuple(
        math.log((a + 1) / sizes[0]) - math.log((b + 1) / sizes[1]) for a, b in zip(own, together, strict=True)
    )
