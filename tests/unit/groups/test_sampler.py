"""Reading between pixels: what the cubic kernel promises."""

from __future__ import annotations

import torch

from popmi_core.groups.sampler import cubic_slopes, cubic_weights, sample, sample_slope

FRACTIONS = torch.linspace(0, 1, 21, dtype=torch.float64)


def test_weights_sum_to_one_and_slopes_to_nothing():
    assert torch.allclose(cubic_weights(FRACTIONS).sum(dim=0), torch.ones_like(FRACTIONS), atol=1e-15)
    assert torch.allclose(cubic_slopes(FRACTIONS).sum(dim=0), torch.zeros_like(FRACTIONS), atol=1e-15)


def test_on_a_pixel_only_that_pixel_counts():
    assert cubic_weights(torch.zeros(1, dtype=torch.float64))[:, 0].tolist() == [0, 1, 0, 0]
    assert cubic_slopes(torch.zeros(1, dtype=torch.float64))[:, 0].tolist() == [-0.5, 0, 0.5, 0]


def test_slopes_are_the_derivatives_of_the_weights():
    step = 1e-6
    inner = FRACTIONS[1:-1]
    difference = (cubic_weights(inner + step) - cubic_weights(inner - step)) / (2 * step)
    # Central differences of cubics: step squared, and rounding of 1e-16 / step.
    assert torch.allclose(cubic_slopes(inner), difference, atol=1e-9)


def test_slopes_agree_where_two_cells_meet():
    end, start = cubic_slopes(torch.ones(1, dtype=torch.float64)), cubic_slopes(torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(end[1:], start[:-1], atol=1e-15)
    assert float(end[0].abs() + start[-1].abs()) == 0


def test_a_parabola_is_read_exactly_between_its_pixels():
    place = torch.arange(9, dtype=torch.float64)
    image = (place[:, None] ** 2 - 3 * place[None, :] ** 2 + place[:, None] * place[None, :])[None, None]
    row, col = torch.tensor([3.3, 4.75], dtype=torch.float64), torch.tensor([5.1, 2.5], dtype=torch.float64)
    assert torch.allclose(sample(image, row, col)[0, 0], row**2 - 3 * col**2 + row * col, atol=1e-12)


def test_the_slope_of_a_sample_is_what_a_small_step_changes():
    image = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row, col = (torch.tensor(values, dtype=torch.float64) for values in ([0.2, 6.9, -0.4], [3.5, 7.3, 1.0]))
    down, along = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 1.0, -1.0]).double()
    step = 1e-6
    ahead, behind = (sample(image, row + s * down, col + s * along) for s in (step, -step))
    assert torch.allclose(sample_slope(image, row, col, down, along), (ahead - behind) / (2 * step), atol=1e-8)


def test_beyond_the_edge_the_image_is_reflected_however_far():
    image = torch.arange(5, dtype=torch.float64)[None, None, :, None].expand(1, 1, 5, 5)
    outside = torch.tensor([-1.0, 5.0, -6.0, 14.0], dtype=torch.float64)
    # -1 is the edge pixel again; -6 = -1 - 5 is the far edge; 14 is four more than the period of ten.
    assert sample(image, outside, torch.zeros(4, dtype=torch.float64))[0, 0].tolist() == [0, 4, 4, 4]
