"""The figures of one trained model: what it hits, what turning changes, and what it costs. All of test images."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from cases import MEASURED, Case
from cost import parameters, relative_speed
from data import Images, subset
from torch import nn

from popmi_core.adapters import equivariance_error
from popmi_core.data import ImageSet
from popmi_core.equivariance.curve import rotation_curve
from popmi_core.equivariance.lie import lee_figures, lie_derivatives
from popmi_core.errors import ModelError
from popmi_core.groups import point_group
from popmi_core.learning.cost import flops
from popmi_core.learning.judge import predicted
from popmi_core.metrics import classification_metrics
from popmi_core.metrics.turning import turning_figures
from popmi_core.models import normalise

# The same images for every row and seed of a data set.
SUBSET_SEED = 20
RESAMPLES = 100
HIT = ("accuracy", "balanced_accuracy", "auroc", "auprc", "macro_f1", "nll", "ece", "brier")
GROUPS = ("C4", "D4")


def figures(model: nn.Module, plain: nn.Module, case: Case, images: Images) -> dict[str, Any]:
    """Return every figure of a model in evaluation mode; ``plain`` is what its time is compared with."""
    size = images.image_size
    blank = torch.zeros(1, 3, size, size)
    found: dict[str, Any] = {"parameters": parameters(model), "flops": flops(model, blank)}
    found["flops_of_plain"] = found["flops"] / flops(plain, blank)
    found |= relative_speed(model, plain, size)
    found |= hits(model, images.test, found["images_per_second"])
    count = "turned" if found["images_per_second"] >= MEASURED["slow"] else "turned_slow"
    turned, positions = subset(images.native, MEASURED[count], SUBSET_SEED)
    few = images.test.subset(positions[: MEASURED["lie"]])
    found["turning"] = turning(model, turned, images)
    found["lee"] = lie(model, few)
    found["error"] = errors(model, few)
    return found


def hits(model: nn.Module, test: ImageSet, speed: float) -> dict[str, Any]:
    """Return the figures of upright test images: of all, or of a fixed draw of them where all would take too long."""
    counts = [count for count in (len(test), MEASURED["fewer"], MEASURED["fewest"]) if count <= len(test)]
    quick = [count for count in counts if count <= MEASURED["patience"] * speed]
    chosen = subset(test, max(quick, default=min(counts)), SUBSET_SEED)[0]
    scores = predicted(model, chosen, lambda pixels: normalise(pixels, model))
    found = classification_metrics(scores, chosen.targets)
    return {"tested": len(chosen), **{name: rounded(found[name]) for name in HIT}}


def turning(model: nn.Module, turned: ImageSet, images: Images) -> dict[str, Any]:
    """Return delta_rot's figures of the model and of its floor."""
    # The training images' colour at their rim: that of a few test images would do, but this one is every row's.
    outside = [value / 255 for value in images.outside]
    curve = rotation_curve(model, turned.images, image_size=images.image_size, outside=outside)
    found = turning_figures(
        curve.logits, turned.targets, angles=curve.angles, invariant=curve.rings, resamples=RESAMPLES
    )
    floor = found.floor
    assert floor is not None
    return {
        "images": found.num_images,
        "worst_angle": found.worst_angle,
        "upright_accuracy": rounded(found.by_angle["accuracy"][0]),
        **{name: rounded(value.value) for name, value in found.figures.items()},
        "floor": {name: rounded(value.value) for name, value in floor.figures.items()},
        "over_floor": {name: rounded(value.value) for name, value in found.over_floor.items()},
    }


def lie(model: nn.Module, few: ImageSet) -> dict[str, Any]:
    """Return LEE end to end, per pixel of movement and relative to the logits' spread, by generator.

    Where a model has no forward-mode derivative, the reason instead.
    """
    try:
        found = lee_figures(lie_derivatives(model, normalise(torch.from_numpy(few.images), model)), resamples=2)
    except ModelError as error:
        return {"why_not": str(error)}
    return {name: rounded(one.relative.value) for name, one in found.items()}


def errors(model: nn.Module, few: ImageSet) -> dict[str, float]:
    """Return how far logits move under C4 and D4, as a share of their spread (float32)."""
    pixels = normalise(torch.from_numpy(few.images), model)
    return {group: equivariance_error(model, pixels, point_group(group)) for group in GROUPS}


def rounded(value: float) -> float | None:
    """Return six digits, and None for what is not defined: JSON has no NaN."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def timed(model: nn.Module, plain: nn.Module, case: Case, images: Images) -> dict[str, Any]:
    """Return ``figures`` and the processor seconds that measuring took."""
    begun = time.process_time()
    found = figures(model, plain, case, images)
    return {**found, "measuring_seconds": round(time.process_time() - begun, 1)}
