"""What turning this site's validation images does to a model's answers: means over images, by angle and by layer."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from popmi_core.data import ImageSet
from popmi_core.equivariance import layer_terms, rotation_curve
from popmi_core.errors import ModelError
from popmi_core.limits import MIN_CELL
from popmi_core.measure import LayerLee, TurnedShares, TurnedTold, TurningAsk
from popmi_core.metrics import TurningAccumulator
from popmi_core.metrics.turning import TurningFigures
from popmi_core.models import normalise

log = logging.getLogger("popmi.site")
NOT_FOLLOWED = "rotation LEE by layer was not measured: this architecture cannot be followed layer by layer"


def turn_validation(model: nn.Module, data: ImageSet, ask: TurningAsk, *, seed: int) -> TurnedTold | None:
    """Return what turning does to the answers; None where there are fewer than ``MIN_CELL`` images.

    Images are turned at the size the model takes them. Nothing of a single image is told.

    Args:
        model: Normalised images -> logits.
        data: The validation images.
        ask: Angles, and how many images at most.
        seed: Chooses the images where there are more.
    """
    if len(data) < MIN_CELL:
        return None
    order = np.random.default_rng(seed).permutation(len(data))
    some, few = (data.subset(np.sort(order[:count])) for count in (ask.images, ask.lee_images))
    model.eval()
    curve = rotation_curve(model, some.images, image_size=some.images.shape[1], angles=ask.degrees)
    # One draw: intervals are not told, and most of the time would go into them.
    turned = TurningAccumulator(ask.degrees, resamples=1)
    turned.update(curve.logits, some.targets, curve.rings)
    found = turned.compute()
    assert found.floor is not None
    layers, note = _layers(model, few)
    return TurnedTold(
        num_images=len(some),
        figures=_shares(found),
        floor=_shares(found.floor),
        lee_images=len(few) if layers else 0,
        layers=layers,
        note=note,
    )


def _shares(found: TurningFigures) -> TurnedShares:
    # Sums of rounded probabilities can leave 0..1 by the last digit.
    def inside(name: str) -> tuple[float, ...]:
        return tuple(min(max(value, 0.0), 1.0) for value in found.by_angle[name])

    return TurnedShares(total_variation=inside("total_variation"), flips=inside("flips"), accuracy=inside("accuracy"))


def _layers(model: nn.Module, data: ImageSet) -> tuple[tuple[LayerLee, ...], str]:
    """Return LEE of every layer, or none and why not."""
    try:
        terms = layer_terms(model, normalise(torch.from_numpy(data.images), model), generators=("rotation",))
        kinds = dict(zip(terms.names, terms.kinds, strict=True))
        found = terms.lee("rotation")
        return tuple(LayerLee(name=name, kind=kinds[name], value=value) for name, value in found.items()), ""
    except (ModelError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        # Whatever an unknown architecture does under hooks and batched gradients; the curve needs none of them.
        log.warning("LEE by layer was not measured: %s", error)
        return (), f"{NOT_FOLLOWED} ({type(error).__name__})"
