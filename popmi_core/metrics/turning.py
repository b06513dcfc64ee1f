"""delta_rot: how a model's answers change while its images are turned through the full circle.

Conventions: the first angle is upright and what all others are compared with; means over angles leave it out, worst
angles include it. Intervals are bootstrapped over images (seeded); the order of the images changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.calibration import ECE_BINS, gap_by_quantile
from popmi_core.metrics.checks import FloatArray, IntArray, check_labels
from popmi_core.metrics.resampling import (
    RESAMPLES,
    Interval,
    interval,
    ratio_interval,
    resample,
    weighted_auroc,
    weighted_mean,
)
from popmi_core.metrics.twin import invariant_twin

CHANGES = ("total_variation", "total_variation_max", "logit_rms", "flips", "flipped_ever")
"""Figures that need no label: 0 for a model that no turn changes."""
WORST = ("worst_accuracy", "accuracy_drop", "worst_auroc", "worst_ece", "worst_brier")
"""Figures at the worst angle, of labelled images."""


@dataclass(frozen=True, eq=False)
class TurningFigures:
    """What turning does to a model's answers; conventions in docs/metrics.md.

    Attributes:
        angles: Degrees; the first is upright.
        num_images: Images turned.
        figures: CHANGES and, with labels, WORST, each with its interval (worst_ece has none).
        by_angle: One number per angle: total_variation, flips and, with labels, accuracy, auroc, ece, brier.
        worst_angle: Degrees at which accuracy is least; without labels, at which total variation is largest.
        floor: The same figures of the invariant twin, where features for one were given.
        over_floor: The model's changes (and accuracy drop) as multiples of the twin's; over a floor of 0 infinite, or
            NaN if the model's is 0 too. Intervals as ``ratio_interval``.
    """

    angles: tuple[float, ...]
    num_images: int
    figures: Mapping[str, Interval]
    by_angle: Mapping[str, tuple[float, ...]]
    worst_angle: float
    floor: TurningFigures | None = None
    over_floor: Mapping[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything by name, ready for JSON (NaN where a figure is undefined)."""
        return {
            "angles": list(self.angles),
            "num_images": self.num_images,
            "figures": {name: value.to_json() for name, value in self.figures.items()},
            "by_angle": {name: list(values) for name, values in self.by_angle.items()},
            "worst_angle": self.worst_angle,
            "floor": None if self.floor is None else self.floor.to_json(),
            "over_floor": {name: value.to_json() for name, value in self.over_floor.items()},
        }


def turning_figures(
    logits: ArrayLike,
    target: ArrayLike | None,
    *,
    angles: Sequence[float],
    invariant: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TurningFigures:
    """Return delta_rot's figures, with intervals and the floor.

    Args:
        logits: Shape [angles, n, C], of the same images at every angle, upright first.
        target: Class numbers, shape [n]; None leaves out what needs labels.
        angles: Degrees, one per row of ``logits``; the first is 0.
        invariant: Rotation-invariant features of the same turned images, shape [angles, n, features], for the floor.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        UpdateError: If a shape is wrong, a number is not finite, there are fewer than two angles, images or classes,
            the first angle is not 0, or a target is not an integer in 0..C-1.
    """
    values = check_turned(logits, angles)
    labels = None
    if target is not None:
        labels = check_labels(target, num_images=values.shape[1], num_classes=values.shape[2], name="target")
    order = _canonical(values, labels)
    values, labels = values[:, order], None if labels is None else labels[order]
    weights = resample(values.shape[1], resamples=resamples, seed=seed)
    degrees = tuple(float(angle) for angle in angles)
    found, drawn = _figures(values, labels, degrees, weights)
    if invariant is None:
        return found
    features = check_invariant(invariant, values.shape[:2])[:, order]
    floor, under = _figures(invariant_twin(features, values[0]), labels, degrees, weights)
    names = (*CHANGES, *(("accuracy_drop",) if labels is not None else ()))
    ratios = {name: ratio_interval(drawn[name], under[name]) for name in names}
    return TurningFigures(
        found.angles, found.num_images, found.figures, found.by_angle, found.worst_angle, floor, ratios
    )


def check_turned(logits: ArrayLike, angles: Sequence[float], *, fewest: int = 2) -> FloatArray:
    """Return logits of turned images as float64 [angles, n, C], of at least ``fewest`` images.

    Raises:
        UpdateError: If the shape is wrong, the first angle is not 0, or a logit is not finite.
    """
    values: FloatArray = np.asarray(logits, dtype=np.float64)
    enough = values.ndim == 3 and len(values) >= 2 and values.shape[1] >= fewest and values.shape[2] >= 2
    if not enough or len(angles) != len(values):
        raise UpdateError(
            f"logits of turned images have shape {values.shape} for {len(angles)} angles, expected (angles >= 2, "
            f"images >= {fewest}, classes >= 2). Stack one table of logits per angle, of the same images."
        )
    if float(angles[0]) != 0.0:
        raise UpdateError(
            f"the first angle is {angles[0]} degrees, expected 0. Put the upright images, which all others are "
            "compared with, first."
        )
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).any(axis=(0, 2)).sum())
        raise UpdateError(
            f"{lost} of {values.shape[1]} images have logits that are NaN or infinite at some angle, expected finite "
            "numbers. The model has diverged; lower the learning rate."
        )
    return values


def softmax(logits: FloatArray) -> FloatArray:
    """Return probabilities over the last axis of ``logits [..., C]``."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
    return scores


def _figures(
    logits: FloatArray, labels: IntArray | None, angles: tuple[float, ...], weights: FloatArray
) -> tuple[TurningFigures, dict[str, FloatArray]]:
    """Return the figures, and each of them in every draw."""
    scores, preds = softmax(logits), logits.argmax(axis=2)
    variation = np.abs(scores - scores[0]).sum(axis=2) / 2
    flips = (preds != preds[0]).astype(np.float64)
    by_angle = {"total_variation": variation.mean(axis=1), "flips": flips.mean(axis=1)}
    drawn = {
        "total_variation": weighted_mean(variation[1:].mean(axis=0), weights),
        "total_variation_max": weighted_mean(variation.max(axis=0), weights),
        "logit_rms": _logit_rms(logits, weights),
        "flips": weighted_mean(flips[1:].mean(axis=0), weights),
        "flipped_ever": weighted_mean(flips.max(axis=0), weights),
    }
    worst = int(by_angle["total_variation"].argmax())
    if labels is not None:
        labelled = _labelled(scores, labels, weights)
        by_angle |= {name: table[:, 0] for name, table in labelled.items()}
        worst = int(by_angle["accuracy"].argmin())
        drawn |= {
            "worst_accuracy": labelled["accuracy"].min(axis=0),
            "accuracy_drop": labelled["accuracy"][0] - labelled["accuracy"].min(axis=0),
            "worst_auroc": labelled["auroc"].min(axis=0),
            "worst_ece": labelled["ece"].max(axis=0),
            "worst_brier": labelled["brier"].max(axis=0),
        }
    return TurningFigures(
        angles,
        logits.shape[1],
        {name: interval(values) for name, values in drawn.items()},
        {name: tuple(values.tolist()) for name, values in by_angle.items()},
        angles[worst],
    ), drawn


def _logit_rms(logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Return, in every draw, the root mean square of logits' moves over the spread of upright logits."""
    moved = weighted_mean(np.square(logits[1:] - logits[0]).mean(axis=(0, 2)), weights)
    upright = logits[0].T
    # About the mean over all images first: a large common offset would cost digits.
    upright = upright - upright.mean(axis=1, keepdims=True)
    variance = weighted_mean(np.square(upright), weights) - np.square(weighted_mean(upright, weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: FloatArray = np.sqrt(moved / variance.clip(min=0).mean(axis=0))
    return relative


def _labelled(scores: FloatArray, labels: IntArray, weights: FloatArray) -> dict[str, FloatArray]:
    """Return accuracy, auroc, ece and brier, each [angles, draws]; ece of the images as they are only."""
    num_classes = scores.shape[2]
    correct = (scores.argmax(axis=2) == labels).astype(np.float64)
    return {
        "accuracy": weighted_mean(correct, weights),
        "auroc": np.stack([_auroc(table, labels, weights) for table in scores]),
        # Not resampled: images drawn twice make ECE larger, so percentiles would lie above the figure itself.
        "ece": np.array(
            [
                [gap_by_quantile(table.max(axis=1), hits, weights[0], bins=ECE_BINS)]
                for table, hits in zip(scores, correct, strict=True)
            ]
        ),
        "brier": weighted_mean(np.square(scores - np.eye(num_classes)[labels]).sum(axis=2), weights),
    }


def _auroc(scores: FloatArray, labels: IntArray, weights: FloatArray) -> FloatArray:
    """Return the mean over classes that have one, in every draw."""
    classes = np.unique(labels)
    by_class = np.stack([weighted_auroc(scores[:, c], labels == c, weights) for c in classes])
    defined = np.isfinite(by_class)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = np.where(defined, by_class, 0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _canonical(logits: FloatArray, labels: IntArray | None) -> IntArray:
    """Return an order of the images that depends on their answers only: the bootstrap draws by place."""
    keys = [*logits.transpose(0, 2, 1).reshape(-1, logits.shape[1])]
    return np.lexsort(keys if labels is None else [labels, *keys]).astype(np.int64)


def check_invariant(features: ArrayLike, expected: tuple[int, ...]) -> FloatArray:
    """Return invariant features as float64 [angles, n, features], ``expected`` being (angles, n) of their logits.

    Raises:
        UpdateError: If the shape is another, or a number is not finite.
    """
    values: FloatArray = np.asarray(features, dtype=np.float64)
    if values.ndim != 3 or values.shape[:2] != expected or not np.isfinite(values).all():
        raise UpdateError(
            f"invariant features have shape {values.shape}, expected finite numbers of shape {(*expected, 'features')}."
            " Compute them from the same turned images as the logits."
        )
    return values
