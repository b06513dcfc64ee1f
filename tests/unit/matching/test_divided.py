"""A vector is divided by gamma so that the layers which read it through gamma see it unchanged."""

import pytest
import torch

from popmi_core.matching.steps import divided


def draw(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# Readers with fewer rows than columns, as many, and more.
@pytest.mark.parametrize("rows", [3, 8, 20])
def test_without_small_gammas_it_is_a_plain_division(rows):
    values, gamma = draw(8, 2), 1 + 0.1 * draw(8)

    assert torch.equal(divided(values, gamma, [draw(rows, 8)]), values / gamma[:, None])


@pytest.mark.parametrize("small", [0.0, 1e-8, 0.01])
def test_readers_with_room_see_the_same_and_nothing_grows_large(small):
    values, gamma = draw(12, 2), 1 + 0.1 * draw(12)
    gamma[::4] = small
    readers = [draw(3, 12), draw(2, 12)]

    found = divided(values, gamma, readers)

    for weight in readers:
        # Least squares in float64, of well-conditioned weights.
        torch.testing.assert_close(weight @ (gamma[:, None] * found), weight @ values, rtol=1e-10, atol=1e-12)
    assert found.abs().max() < 20 * values.abs().max()


def test_readers_without_room_leave_only_the_division():
    values, gamma = draw(4, 1), torch.tensor([1.0, 1e-3, 2.0, 0.0], dtype=torch.float64)

    found = divided(values, gamma, [draw(9, 4)])

    assert torch.equal(found[:3], values[:3] / gamma[:3, None])
    assert found[3] == 0


def test_a_reader_that_is_still_zero_does_no_harm():
    values, gamma = draw(8, 1), torch.ones(8, dtype=torch.float64)
    gamma[0] = 0.0
    weight = torch.cat([draw(2, 8), torch.zeros(1, 8, dtype=torch.float64)])

    found = divided(values, gamma, [weight])

    # Least squares in float64, of well-conditioned weights.
    torch.testing.assert_close(weight @ (gamma[:, None] * found), weight @ values, rtol=1e-10, atol=1e-12)


def test_readers_of_a_closed_channel_alone_leave_only_the_division():
    values, gamma = draw(8, 1), torch.ones(8, dtype=torch.float64)
    gamma[0] = 0.0
    weight = torch.zeros(2, 8, dtype=torch.float64)
    weight[:, 0] = 1.0

    assert torch.equal(divided(values, gamma, [weight])[1:], values[1:])
