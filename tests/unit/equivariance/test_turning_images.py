"""Turned images as delta_rot asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from popmi_core.data.decode import to_square
from popmi_core.equivariance.turning import ANGLES, soft_disk, turn_images
from popmi_core.errors import ModelError
from popmi_core.groups.rotations import rotate


def _blobs(side: int, count: int = 2) -> torch.Tensor:
    noise = torch.rand(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1)


def test_angles_are_the_full_circle_by_tens():
    assert list(ANGLES) == list(range(0, 360, 10))


@pytest.mark.parametrize("side", [15, 16])
def test_quarter_turns_move_pixels_and_nothing_else(side):
    images = _blobs(side)
    for quarter in range(4):
        assert torch.equal(rotate(images, 90.0 * quarter), torch.rot90(images, quarter, (-2, -1)))


@pytest.mark.parametrize("side", [15, 16])
def test_angles_a_quarter_apart_differ_by_a_quarter_turn_to_the_last_bit(side):
    images = _blobs(2 * side)
    upright, turned = (turn_images(images, angle, image_size=side) for angle in (30.0, 120.0))
    assert torch.equal(turned, torch.rot90(upright, 1, (-2, -1)))


def test_turning_follows_a_point_counter_clockwise_about_the_exact_centre():
    side, place = 33, torch.arange(33, dtype=torch.float64)

    def spot(row: float, col: float) -> torch.Tensor:
        return torch.exp(-((place[:, None] - row) ** 2 + (place[None, :] - col) ** 2) / 18)[None, None]

    turned = rotate(spot(16, 24), 30.0)
    expected = spot(16 - 8 * np.sin(np.pi / 6), 16 + 8 * np.cos(np.pi / 6))
    # A Gaussian of three pixels: the cubic kernel's error is third order, about 0.003 at its steepest.
    # In the disk: the corners hold what is reflected at the edge.
    inside = soft_disk(side) > 0
    assert float((turned - expected)[..., inside].abs().max()) < 5e-3


def test_there_and_back_again_is_almost_the_image():
    images = _blobs(48)
    back = rotate(rotate(images, 40.0), -40.0)
    inside = soft_disk(48) > 0.99
    # Two interpolations of blobs eight pixels wide.
    assert float((back - images)[..., inside].abs().max()) < 0.02


def test_outside_the_disk_is_one_constant_at_every_angle():
    images = _blobs(20)
    corner = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    for angle in (0.0, 20.0, 90.0):
        turned = turn_images(images, angle, image_size=16, outside=corner)
        assert torch.allclose(turned[..., 0, 0], corner.expand(2, 3), atol=1e-15)
        assert torch.allclose(turned[..., -1, 0], corner.expand(2, 3), atol=1e-15)


def test_the_disk_is_soft_round_and_reaches_the_border():
    disk = soft_disk(32)
    assert float(disk[16, 16]) == 1
    assert float(disk[0, 0]) == 0
    assert torch.equal(disk, torch.rot90(disk, 1, (0, 1)))
    edge = disk[16]
    assert 0 < float(edge[0]) < 1
    assert float(edge[3]) == 1


def test_upright_images_are_reduced_as_the_readers_reduce_files():
    pixels = (255 * _blobs(40)[0]).round().byte().permute(1, 2, 0).numpy()
    read = to_square(Image.fromarray(pixels), image_size=16)
    turned = turn_images(torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255, 0.0, image_size=16)
    middle = soft_disk(16) == 1
    # Pillow rounds to whole brightnesses, twice (once per axis).
    assert float((255 * turned[0] - torch.from_numpy(read.copy()).permute(2, 0, 1))[:, middle].abs().max()) <= 1.01


def test_turning_at_native_resolution_loses_less_than_turning_after_the_reduction():
    fine = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fine = functional.avg_pool2d(fine, 3, 1, 1)
    reduced = functional.interpolate(fine, size=(32, 32), mode="bilinear", antialias=True)
    contrast = {name: float(turn_images(images, 45.0, image_size=32).std()) for name, images in
                (("native", fine), ("reduced", reduced))}  # fmt: skip
    assert contrast["reduced"] < contrast["native"]


def test_brightness_stays_between_black_and_white():
    checks = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(2)).round()
    turned = turn_images(checks, 17.0, image_size=12)
    assert float(turned.min()) >= 0
    assert float(turned.max()) <= 1


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ModelError, match="cannot turn images of 8x9 pixels"):
        rotate(torch.zeros(1, 3, 8, 9), 10.0)


def test_an_angle_that_is_no_number_is_refused():
    with pytest.raises(ModelError, match="finite angle"):
        rotate(torch.zeros(1, 3, 8, 8), float("nan"))
