"""Metrics fed batch by batch: ``update``, ``compute``, ``reset`` and ``merge``, as torchmetrics names them.

None of these figures is a mean of figures of batches (AUROC and quantile bins need all images at once), so answers are
kept and the function on all of them is computed at the end. Batches and their order change nothing but the last digits
of sums; the bootstrap of turned images does not depend on the order at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray, IntArray, check_labels, check_probabilities, check_scores
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.resampling import RESAMPLES
from popmi_core.metrics.turning import TurningFigures, check_turned, turning_figures

Kind = TypeVar("Kind", bound=np.generic)


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
        self._logits: list[FloatArray] = []
        self._target: list[IntArray | None] = []
        self._invariant: list[FloatArray | None] = []

    def update(self, logits: ArrayLike, target: ArrayLike | None = None, invariant: ArrayLike | None = None) -> None:
        """Take a batch: logits [angles, n, C], and where there are, class numbers [n] and features [angles, n, F].

        Raises:
            UpdateError: If a shape is wrong or a number is not finite (a batch may be of one image).
        """
        values = check_turned(logits, self.angles, fewest=1)
        count, classes = values.shape[1:]
        self._logits.append(values)
        self._target.append(
            None if target is None else check_labels(target, num_images=count, num_classes=classes, name="target")
        )
        self._invariant.append(None if invariant is None else np.asarray(invariant, dtype=np.float64))

    def compute(self) -> TurningFigures:
        """Return ``turning_figures`` of all images.

        Raises:
            UpdateError: If no batch was given, or only some came with labels or with features.
        """
        _require_some(self._logits)
        return turning_figures(
            np.concatenate(self._logits, axis=1),
            _joined(self._target, "labels", axis=0),
            angles=self.angles,
            invariant=_joined(self._invariant, "invariant features", axis=1),
            **self._settings,
        )

    def reset(self) -> None:
        """Forget all batches."""
        self._logits, self._target, self._invariant = [], [], []

    def merge(self, other: Self) -> None:
        """Add the batches of another accumulator, which stays as it is.

        Raises:
            UpdateError: If its angles are others.
        """
        if other.angles != self.angles:
            raise UpdateError(
                f"cannot merge figures at {len(other.angles)} angles into those at {len(self.angles)}: the angles "
                "differ. Turn all images by the same angles."
            )
        self._logits += other._logits
        self._target += other._target
        self._invariant += other._invariant


def _require_some(batches: Sequence[FloatArray]) -> None:
    if not batches:
        raise UpdateError("no batch was given, expected at least one. Call update before compute.")


def _joined(parts: Sequence[NDArray[Kind] | None], what: str, *, axis: int) -> NDArray[Kind] | None:
    given = [part for part in parts if part is not None]
    if given and len(given) < len(parts):
        raise UpdateError(
            f"{len(given)} of {len(parts)} batches came with {what}, expected all or none. Give them every time."
        )
    return np.concatenate(given, axis=axis) if given else None
