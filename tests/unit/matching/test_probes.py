"""Smooth noise: drawn from a generator, normalised, and smoother than white noise."""

import pytest
import torch

from popmi_core.errors import ModelError
from popmi_core.matching.probes import probe_images


def test_every_image_has_mean_zero_and_variance_one(generator):
    images = probe_images((3, 28, 20), 9, generator)

    assert images.shape == (9, 3, 28, 20)
    # float32 sums over 1,680 numbers.
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.square().mean(dim=(1, 2, 3)), torch.ones(9), rtol=1e-4, atol=0)


def test_the_same_generator_gives_the_same_images():
    one, other = (probe_images((3, 16, 16), 4, torch.Generator().manual_seed(5)) for _ in range(2))

    assert torch.equal(one, other)


def test_neighbouring_pixels_are_alike_and_scales_differ(generator):
    images = probe_images((1, 64, 64), 64, generator)

    steps = (images[..., 1:] - images[..., :-1]).square().mean(dim=(1, 2, 3)).reshape(-1, 4).mean(0)

    # White noise of variance 1 has steps of 2; the four slopes go from texture to gradients.
    assert float(steps.max()) < 1
    assert bool((steps[1:] < steps[:-1]).all())


def test_colour_channels_go_together(generator):
    images = probe_images((3, 32, 32), 200, generator)

    red, green = images[:, 0].flatten(), images[:, 1].flatten()
    correlation = float((red * green).mean() / (red.square().mean() * green.square().mean()).sqrt())

    # 0.7 of the variance is common to all channels; 200 smooth images leave a few hundredths of chance.
    assert correlation == pytest.approx(0.7, abs=0.1)


def test_an_image_of_one_pixel_is_finite(generator):
    assert bool(torch.isfinite(probe_images((1, 1, 1), 3, generator)).all())


def test_sizes_below_one_are_refused(generator):
    with pytest.raises(ModelError, match=r"probe images: 0 of shape \(3, 8, 8\) asked for"):
        probe_images((3, 8, 8), 0, generator)
