"""Orders of units: the assignment, and what is refused."""

import itertools

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 6])
def test_the_best_order_is_the_best_of_all_orders(units):
    scores = normal(units, units, seed=units)

    found = best_order(scores)

    best = max(sum(scores[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(units)))
    assert sum(scores[i, p] for i, p in enumerate(found)) == best


def test_scores_that_are_no_square_are_refused():
    with pytest.raises(UpdateError, match=r"scores have shape \(2, 3\), expected a square"):
        best_order(normal(2, 3))


def test_scores_with_nan_are_refused():
    with pytest.raises(UpdateError, match="a score is NaN or infinite"):
        best_order(torch.full((2, 2), torch.nan))
