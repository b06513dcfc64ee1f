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
            ModelError: As ``lie_derivatives``, or if earlier images had another size or their model other classes; a
                batch that is refused changes nothing.
        """
        found = lie_derivatives(model, images, generators=self.generators)
        self._require_kind(found)
        self._found.append(found)

    def compute(self) -> dict[str, Lee]:
        """Return LEE of all images by generator.

        Raises:
            ModelError: If no batch was given, or a derivative or a logit is not finite.
        """
        return lee_figures(self.derivatives(), **self._settings)

    def derivatives(self) -> Derivatives:
        """Return the derivatives of all images.

        Raises:
            ModelError: If no batch was given.
        """
        if not self._found:
            raise ModelError("LEE was given no batch, expected at least one batch. Call update before compute.")
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
            ModelError: If its generators, image size or classes are others.
        """
        if other.generators != self.generators:
            raise ModelError(
                f"cannot merge LEE of {', '.join(other.generators)} into that of {', '.join(self.generators)}. "
                "Measure the same generators."
            )
        if other._found:
            self._require_kind(other._found[0])
        self._found += other._found

    def _require_kind(self, found: Derivatives) -> None:
        if self._found and _kind(found) != (before := _kind(self._found[0])):
            raise ModelError(
                f"LEE was given {_kind(found)} after {before}, expected one kind. Use one accumulator per model."
            )


def _kind(found: Derivatives) -> str:
    return f"images of {found.image_size} pixels and {found.logits.shape[1]} classes"
