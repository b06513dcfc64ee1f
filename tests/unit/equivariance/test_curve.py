"""The rotation curve of real models."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach
from popmi_core.data import make_phantom_site
from popmi_core.equivariance.curve import rotation_curve
from popmi_core.equivariance.rings import ring_statistics, ring_windows
from popmi_core.equivariance.turning import border_colour
from popmi_core.errors import ModelError
from popmi_core.metrics.turning import turning_figures

IMAGES = make_phantom_site("phantom_contact", num_images=30, image_size=48, seed=0).train


@pytest.fixture(scope="module")
def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("popmi_vit_micro", num_classes=7).double().eval()


@pytest.fixture(scope="module")
def curve(backbone):
    return rotation_curve(backbone, IMAGES.images, image_size=32, angles=(0, 30, 90, 120), batch_size=8)


def test_batches_change_nothing(backbone, curve):
    whole = rotation_curve(backbone, IMAGES.images, image_size=32, angles=(0, 30, 90, 120))
    assert np.allclose(curve.logits, whole.logits, atol=1e-12)
    assert curve.logits.shape == (4, len(IMAGES), 7)


def test_beyond_the_disk_lies_the_colour_that_these_images_have_there(backbone):
    black = IMAGES.images.copy()
    row, col = np.mgrid[:48, :48] - 23.5
    black[:, row**2 + col**2 >= 24**2] = [0, 51, 255]
    assert border_colour(black) == (0.0, 0.2, 1.0)
    seen = []
    handle = backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rotation_curve(backbone, black[:2], image_size=32, angles=(0, 30))
    rotation_curve(backbone, black[:2], image_size=32, angles=(0, 30), outside=(0.5, 0.5, 0.5))
    handle.remove()
    # Brightness b is seen as 2 b - 1 by a model of mean and spread one half.
    for view in seen[:2]:
        assert torch.allclose(view[..., 0, 0].double(), torch.tensor([-1, -0.6, 1]).double(), atol=1e-6)
    for view in seen[2:]:
        assert torch.allclose(view[..., 0, 0].double(), torch.zeros(3).double(), atol=1e-6)


def test_an_exact_d4_model_does_not_move_at_quarter_turns_and_does_between(backbone):
    model = attach(backbone, group="D4", merge_block=1).double().eval()
    found = rotation_curve(model, IMAGES.images, image_size=32, angles=(0, 30, 90, 120))
    # Float64, the order of sums differs.
    assert abs(found.logits[2] - found.logits[0]).max() < 1e-12
    assert abs(found.logits[3] - found.logits[1]).max() < 1e-12
    assert abs(found.logits[1] - found.logits[0]).max() > 1e-6


def test_a_plain_vit_moves_far_above_its_floor(curve):
    figures = turning_figures(curve.logits, IMAGES.targets, angles=curve.angles, invariant=curve.rings)
    assert figures.over_floor["logit_rms"].lower > 5


def test_invariant_features_tell_images_apart_and_hardly_move(curve):
    spread = curve.rings[0].std(axis=0)
    moved = abs(curve.rings[1] - curve.rings[0]).mean(axis=0)
    assert np.allclose(curve.rings[2], curve.rings[0], atol=1e-12)
    # Interpolation at 48 pixels, reduced to 32: a tenth of the differences between images, in the middle of features.
    assert np.median(moved / spread) < 0.1


def test_ring_windows_are_weights_of_the_disk_that_quarter_turns_keep():
    windows = ring_windows(20)
    assert windows.shape == (5, 20, 20)
    assert torch.allclose(windows.sum(dim=(1, 2)), torch.ones(5).double())
    assert torch.equal(windows, torch.rot90(windows, 1, (1, 2)))
    assert len(ring_windows(64)) == 8


def test_the_gradient_and_laplacian_of_a_parabola_are_known():
    place = torch.arange(33, dtype=torch.float64) - 16
    bowl = (place[:, None] ** 2 + place[None, :] ** 2)[None, None] / 2
    found = ring_statistics(bowl).view(2, 3, 8)
    # Laplacian 2 everywhere, smoothed or not; the ring's windows near the border see its replicated edge.
    assert torch.allclose(found[0, 2, :4], torch.full((4,), 2.0).double(), atol=1e-2)
    # The gradient's length is the radius; its mean over a hat of width w about radius c is c + w^2 / (6 c), since
    # there are more pixels outside.
    width = 33 / 16
    centres = width * (torch.arange(1, 4).double() + 0.5)
    assert torch.allclose(found[0, 1, 1:4], centres + width**2 / (6 * centres), atol=0.02)


def test_images_of_another_kind_are_refused(backbone):
    with pytest.raises(ModelError, match="images to turn are float64"):
        rotation_curve(backbone, np.zeros((2, 8, 8, 3)), image_size=32)
    with pytest.raises(ModelError, match="at least one"):
        rotation_curve(backbone, IMAGES.images[:0], image_size=32)


@pytest.mark.parametrize("outside", [None, (0.5, 0.5, 0.5)])
def test_oblong_images_are_refused_whatever_lies_outside_the_disk(backbone, outside):
    with pytest.raises(ModelError, match=r"images to turn are uint8 of shape \(14, 48, 40, 3\)"):
        rotation_curve(backbone, IMAGES.images[:, :, :40], image_size=32, outside=outside)
    with pytest.raises(ModelError, match="images are 48x40 pixels, expected square ones"):
        border_colour(IMAGES.images[:, :, :40])
