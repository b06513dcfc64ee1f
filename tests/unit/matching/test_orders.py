"""Orders of groups and of fields: exact, against every element of small groups."""

from itertools import permutations, product

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.groups import channel_permutation, point_group
from popmi_core.matching.orders import best_field_order, best_grouped_order


def gain(scores, perm):
    return float(scores[torch.arange(len(scores)), torch.as_tensor(perm)].sum())


def grouped_orders(size, inner):
    for outer in permutations(range(size)):
        for inside in product(permutations(range(inner)), repeat=size):
            yield [group * inner + unit for group, units in zip(outer, inside, strict=True) for unit in units]


def field_orders(size, shifts):
    for outer in permutations(range(size)):
        for drawn in product(shifts, repeat=size):
            yield [field * len(drawn[0]) + c for field, shift in zip(outer, drawn, strict=True) for c in shift]


def table(name):
    group = point_group(name)
    return tuple(tuple(channel_permutation(group, g).tolist()) for g in group.elements)


@pytest.mark.parametrize(("size", "inner"), [(1, 4), (4, 1), (2, 3), (3, 2), (3, 3)])
def test_a_grouped_order_is_the_best_of_all(size, inner):
    for seed in range(5):
        scores = torch.randn(size * inner, size * inner, generator=torch.Generator().manual_seed(seed)).double()

        found = best_grouped_order(scores, size, inner)

        assert found.tolist() in list(grouped_orders(size, inner))
        # Sums of at most nine numbers of order one, in another order.
        assert gain(scores, found) == pytest.approx(max(gain(scores, p) for p in grouped_orders(size, inner)), abs=1e-9)


@pytest.mark.parametrize("name", ["C2", "C4", "D4"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_field_order_is_the_best_of_all(name, size):
    shifts = table(name)
    width = size * len(shifts)
    for seed in range(3):
        scores = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double()

        found = best_field_order(scores, size, len(shifts), shifts)

        assert found.tolist() in list(field_orders(size, shifts))
        # Sums of at most 24 numbers of order one, in another order.
        assert gain(scores, found) == pytest.approx(max(gain(scores, p) for p in field_orders(size, shifts)), abs=1e-9)


def test_a_planted_order_is_found_again():
    generator = torch.Generator().manual_seed(1)
    shifts = table("D4")
    rows = torch.randn(5 * 8, 30, generator=generator)
    outer = torch.randperm(5, generator=generator)
    drawn = torch.randint(8, (5,), generator=generator)
    planted = (outer[:, None] * 8 + torch.tensor(shifts)[drawn]).flatten()

    found = best_field_order(rows[planted] @ rows.T, 5, 8, shifts)

    assert torch.equal(found, planted)


def test_scores_of_another_size_are_refused():
    with pytest.raises(UpdateError, match="expected a square of 2 x 3 entries"):
        best_grouped_order(torch.zeros(5, 5), 2, 3)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UpdateError, match="NaN or infinite"):
        best_grouped_order(torch.full((4, 4), torch.nan), 2, 2)
    with pytest.raises(UpdateError, match="NaN or infinite"):
        best_field_order(torch.full((4, 4), torch.nan), 2, 2, table("C2"))


def test_a_table_of_another_group_is_refused():
    with pytest.raises(UpdateError, match="expected rows of 2 channels"):
        best_field_order(torch.zeros(4, 4), 2, 2, table("C4"))
