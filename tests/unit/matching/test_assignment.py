"""Orders of units: the assignment, its certificate, and what is refused."""

import itertools

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching import assignment
from popmi_core.matching.assignment import best_order, certified, match_units, neighbour_room


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 6])
def test_the_best_order_is_the_best_of_all_orders(units):
    scores = normal(units, units, seed=units)

    found = best_order(scores)

    best = max(sum(scores[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(units)))
    assert sum(scores[i, p] for i, p in enumerate(found)) == best


def test_shuffled_units_are_put_back_in_order():
    reference, order = normal(12, 5), torch.randperm(12, generator=torch.Generator().manual_seed(1))

    perm = match_units(reference, reference[order])

    assert torch.equal(reference[order][perm], reference)


def test_the_certificate_is_never_wrong():
    granted = 0
    for seed in range(200):
        reference = normal(6, 3, seed=seed)
        candidate = reference + 0.25 * normal(6, 3, seed=1000 + seed)
        if certified(reference, candidate, neighbour_room(reference)).all():
            granted += 1
            assert torch.equal(match_units(reference, candidate), torch.arange(6))
    # Otherwise the test would say nothing.
    assert granted > 20


def test_a_certified_layer_needs_no_assignment(monkeypatch):
    reference = normal(6, 3)
    monkeypatch.setattr(assignment, "best_order", lambda _: pytest.fail("an assignment was solved"))

    perm = match_units(reference, reference + 1e-3, room=neighbour_room(reference))

    assert torch.equal(perm, torch.arange(6))


def test_duplicate_units_have_no_room():
    reference = normal(4, 3)
    reference[2] = reference[0]

    room = neighbour_room(reference)

    assert room[0] == room[2] == 0
    assert (room[[1, 3]] > 0).all()


def test_a_single_unit_has_all_the_room():
    assert torch.equal(neighbour_room(normal(1, 3)), torch.tensor([torch.inf], dtype=torch.float64))


def test_scores_that_are_no_square_are_refused():
    with pytest.raises(UpdateError, match=r"scores have shape \(2, 3\), expected a square"):
        best_order(normal(2, 3))


def test_scores_with_nan_are_refused():
    with pytest.raises(UpdateError, match="a score is NaN or infinite"):
        best_order(torch.full((2, 2), torch.nan))


def test_layers_of_different_width_are_refused():
    with pytest.raises(UpdateError, match=r"units have shape \(3, 2\), expected \(4, 2\)"):
        match_units(normal(4, 2), normal(3, 2))
