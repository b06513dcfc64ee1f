"""Metrics fed batch by batch: ``update``, ``compute``, ``reset`` and ``merge``, as torchmetrics names them.

Accuracy, Brier score, negative log-likelihood and total variation are means over images, so batches' figures could be
averaged by their sizes. AUROC, AUPRC, F1, balanced accuracy, ECE, the spread of logits, worst angles and the bootstrap
cannot: they need all images at once. So answers are kept, and the function on all of them is computed at the end.
Batches and their order change nothing but the last digits of sums; the bootstrap of turned images does not depend on
the order at all. A batch that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray, IntArray, check_labels, check_probabilities, check_scores
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.resampling import RESAMPLES
from popmi_core.metrics.turning import TurningFigures, check_invariant, check_turned, turning_figures


class ScoreAccumulator:
    """``classification_metrics`` over batches.

    Args:
        num_classes: Columns of the scores.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._scores: list[FloatArray] = []
        self._target: list[IntArray] = []

    def update(self, scores: ArrayLike, target: ArrayLike) -> None:
        """Take a batch: probabilities [n, C] and class numbers [n].

        Raises:
            UpdateError: As ``classification_metrics``, or if there is another number of classes.
        """
        values, labels = check_scores(scores, target)
        check_probabilities(values)
        if values.shape[1] != self.num_classes:
            raise UpdateError(
                f"a batch has scores of {values.shape[1]} classes, expected {self.num_classes}. "
                "Use one accumulator per model."
            )
        self._scores.append(values)
        self._target.append(labels)

    def compute(self) -> dict[str, float]:
        """Return ``classification_metrics`` of all images.

        Raises:
            UpdateError: If no batch was given.
        """
        _require_some(self._scores)
        return classification_metrics(np.concatenate(self._scores), np.concatenate(self._target))

    def reset(self) -> None:
        """Forget all batches."""
        self._scores, self._target = [], []

    def merge(self, other: Self) -> None:
        """Add the batches of another accumulator, which stays as it is.

        Raises:
            UpdateError: If it is about another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise UpdateError(
                f"cannot merge scores of {other.num_classes} classes into those of {self.num_classes}. "
                "Use one accumulator per model."
            )
        self._scores += other._scores
        self._target += other._target


class _Turned(NamedTuple):
    """A batch that was checked."""

    logits: FloatArray  # [angles, n, classes]
    target: IntArray | None  # [n]
    invariant: FloatArray | None  # [angles, n, features]

    def kind(self) -> str:
        """Say what all batches have to have in common."""
        labels = "no labels" if self.target is None else "labels"
        features = (
            "no invariant features" if self.invariant is None else f"{self.invariant.shape[2]} invariant features"
        )
        return f"{self.logits.shape[2]} classes, {labels}, {features}"


class TurningAccumulator:
    """``turning_figures`` over batches of images, each at all angles.

    Args:
        angles: Degrees; the first is 0.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.
    """

    def __init__(self, angles: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.angles = tuple(float(angle) for angle in angles)
        self._settings = {"resamples": resamples, "seed": seed}
        self._batches: list[_Turned] = []

    def update(self, logits: ArrayLike, target: ArrayLike | None = None, invariant: ArrayLike | None = None) -> None:
        """Take a batch: logits [angles, n, C], and where there are, class numbers [n] and features [angles, n, F].

        Raises:
            UpdateError: If a shape is wrong or a number is not finite (a batch may be of one image), or earlier batches
                had another number of classes or of features, or only one of them labels or features.
        """
        values = check_turned(logits, self.angles, fewest=1)
        count, classes = values.shape[1:]
        batch = _Turned(
            values,
            None if target is None else check_labels(target, num_images=count, num_classes=classes, name="target"),
            None if invariant is None else check_invariant(invariant, values.shape[:2]),
        )
        self._require_kind(batch)
        self._batches.append(batch)

    def compute(self) -> TurningFigures:
        """Return ``turning_figures`` of all images.

        Raises:
            UpdateError: If no batch was given, or all together hold one image.
        """
        _require_some(self._batches)
        targets = [batch.target for batch in self._batches if batch.target is not None]
        features = [batch.invariant for batch in self._batches if batch.invariant is not None]
        return turning_figures(
            np.concatenate([batch.logits for batch in self._batches], axis=1),
            np.concatenate(targets) if targets else None,
            angles=self.angles,
            invariant=np.concatenate(features, axis=1) if features else None,
            **self._settings,
        )

    def reset(self) -> None:
        """Forget all batches."""
        self._batches = []

    def merge(self, other: Self) -> None:
        """Add the batches of another accumulator, which stays as it is.

        Raises:
            UpdateError: If its angles are others, or its batches do not go with these.
        """
        if other.angles != self.angles:
            raise UpdateError(
                f"cannot merge figures at {len(other.angles)} angles into those at {len(self.angles)}: the angles "
                "differ. Turn all images by the same angles."
            )
        if other._batches:
            self._require_kind(other._batches[0])
        self._batches += other._batches

    def _require_kind(self, batch: _Turned) -> None:
        if self._batches and batch.kind() != (before := self._batches[0].kind()):
            raise UpdateError(
                f"a batch of turned images has {batch.kind()}, those before it {before}: expected the same of all. "
                "Give labels and features every time or never, and use one accumulator per model."
            )


def _require_some(batches: Sequence[object]) -> None:
    if not batches:
        raise UpdateError("no batch was given, expected at least one. Call update before compute.")
