"""LEE fed batch by batch: ``update``, ``compute``, ``reset`` and ``merge``, as torchmetrics names them."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.equivariance.generators import GENERATORS
from popmi_core.equivariance.lie import Derivatives, Lee, lee_figures, lie_derivatives
from popmi_core.errors import ModelError
from popmi_core.metrics.resampling import RESAMPLES


class LieAccumulator:
    """``lee_figures`` over batches; the order of the images changes nothing.

    Args:
        generators: Names of ``GENERATORS``.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.
    """

    def __init__(self, generators: tuple[str, ...] = GENERATORS, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.generators = generators
        self._settings = {"resamples": resamples, "seed": seed}
        self._found: list[Derivatives] = []

    def update(self, model: nn.Module, images: Float[Tensor, "n c side side"]) -> None:
        """Take a batch of normalised images.

        Raises:
            ModelError: As ``lie_derivatives``.
        """
        self._found.append(lie_derivatives(model, images, generators=self.generators))

    def compute(self) -> dict[str, Lee]:
        """Return LEE of all images by generator.

        Raises:
            ModelError: If no batch was given, or batches differ in size or classes.
        """
        return lee_figures(self.derivatives(), **self._settings)

    def derivatives(self) -> Derivatives:
        """Return the derivatives of all images.

        Raises:
            ModelError: As ``compute``.
        """
        kinds = {(part.image_size, part.logits.shape[1]) for part in self._found}
        if len(kinds) != 1:
            raise ModelError(
                f"LEE was given {len(self._found)} batches of {len(kinds)} kinds of images and classes, expected at "
                "least one batch and one kind. Use one accumulator per model."
            )
        return replace(
            self._found[0],
            logits=np.concatenate([part.logits for part in self._found]),
            moved=np.concatenate([part.moved for part in self._found], axis=1),
        )

    def reset(self) -> None:
        """Forget all batches."""
        self._found = []

    def merge(self, other: Self) -> None:
        """Add the batches of another accumulator, which stays as it is.

        Raises:
            ModelError: If its generators are others.
        """
        if other.generators != self.generators:
            raise ModelError(
                f"cannot merge LEE of {', '.join(other.generators)} into that of {', '.join(self.generators)}. "
                "Measure the same generators."
            )
        self._found += other._found
