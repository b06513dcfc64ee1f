"""What a site tells of its turned validation images: means over images, the floor, and layers where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from client.turning import NOT_FOLLOWED, turn_validation
from popmi_core.config import ModelConfig
from popmi_core.data import ImageSet
from popmi_core.equivariance import rotation_curve
from popmi_core.equivariance.lie_layers import layer_terms
from popmi_core.measure import TurningAsk
from popmi_core.metrics import turning_figures
from popmi_core.models import build_model, normalise

ASK = TurningAsk(angles=8, images=20, lee_images=6)
MODEL = ModelConfig(backbone="popmi_vit_micro", image_size=16)


class Mean(nn.Module):
    """Logits from the mean colours: no turn changes them, but for interpolation."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 4 * images.mean(dim=(2, 3))


class Odd(nn.Module):
    """Forgets what gradients need."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(images.detach().numpy().mean(axis=(2, 3)))


def images(count: int) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), rng.integers(0, 3, count))


def test_the_figures_are_those_of_the_rotation_curve_and_its_floor():
    model, data = build_model(MODEL, 3, seed=0).eval(), images(12)
    told = turn_validation(model, data, ASK, seed=1)
    curve = rotation_curve(model, data.images, image_size=16, angles=ASK.degrees)
    known = turning_figures(curve.logits, data.targets, angles=curve.angles, invariant=curve.rings)
    assert told.num_images == 12
    for name in ("total_variation", "flips", "accuracy"):
        assert getattr(told.figures, name) == pytest.approx(known.by_angle[name], abs=1e-12)
        assert getattr(told.floor, name) == pytest.approx(known.floor.by_angle[name], abs=1e-12)


def test_layers_are_those_of_lee_by_layer_on_a_few_of_the_images():
    model, data = build_model(MODEL, 3, seed=0).eval(), images(6)
    told = turn_validation(model, data, ASK, seed=1)
    terms = layer_terms(model, normalise(torch.from_numpy(data.images), model), generators=("rotation",))
    assert told.lee_images == 6
    assert {layer.name: layer.value for layer in told.layers} == pytest.approx(terms.lee("rotation"))
    assert {layer.name: layer.kind for layer in told.layers} == dict(zip(terms.names, terms.kinds, strict=True))


def test_no_more_images_are_looked_at_than_asked_and_always_the_same():
    model, data = build_model(MODEL, 3, seed=0).eval(), images(40)
    told = turn_validation(model, data, ASK, seed=1)
    assert (told.num_images, told.lee_images) == (20, 6)
    assert turn_validation(model, data, ASK, seed=1) == told
    assert turn_validation(model, data, ASK, seed=2) != told


@pytest.mark.parametrize("count", [0, 4])
def test_of_a_handful_of_images_nothing_is_told(count):
    assert turn_validation(Mean(), images(count), ASK, seed=1) is None


def test_an_architecture_that_cannot_be_followed_tells_its_curve_and_why_no_layers():
    told = turn_validation(Odd(), images(9), ASK, seed=1)
    assert (told.layers, told.lee_images) == ((), 0)
    assert told.note.startswith(NOT_FOLLOWED)
    assert len(told.figures.flips) == 8
