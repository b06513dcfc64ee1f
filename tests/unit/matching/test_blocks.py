"""One block at a time: the best move of a space, and the certificate that spares an assignment."""

import pytest
import torch

from popmi_core.matching import Builder, blocks
from popmi_core.matching.blocks import OrderBlock, StreamBlock
from popmi_core.matching.elements import random_rotation

UNITS, FAN = 6, 3


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(weight):
    """Return a state of one layer with these rows."""
    return {"layer.weight": weight}


def described(weight, kind="permutation", **settings):
    build = Builder("layer", layer(weight))
    build.space("units", kind, settings.pop("size", len(weight)), **settings)
    build.linear("layer", writes="units")
    return build.done()


def block_of(weight):
    return OrderBlock(layer(weight), described(weight), "units")


def test_shuffled_units_are_put_back_in_order():
    reference, order = normal(12, 5), torch.randperm(12, generator=torch.Generator().manual_seed(1))

    found = block_of(reference).begin(layer(reference[order]))()

    assert torch.equal(reference[order][found.move.perm], reference)
    assert found.gain > 0


def test_the_certificate_is_never_wrong():
    granted = 0
    for seed in range(200):
        reference = normal(UNITS, FAN, seed=seed)
        candidate = reference + 0.25 * normal(UNITS, FAN, seed=1000 + seed)
        block = block_of(reference)
        if bool(((candidate - reference).norm(dim=1) <= block.room).all()):
            granted += 1
            scores = reference @ candidate.T
            assert torch.equal(blocks.best_order(scores), torch.arange(UNITS))
    # Otherwise the test would say nothing.
    assert granted > 20


def test_a_certified_layer_needs_no_assignment(monkeypatch):
    reference = normal(UNITS, FAN)
    block = block_of(reference)
    monkeypatch.setattr(blocks, "best_order", lambda _: pytest.fail("an assignment was solved"))

    found = block.begin(layer(reference + 1e-3))()

    assert found.identity
    assert found.move.perm is None


def test_duplicate_units_have_no_room():
    reference = normal(4, 3)
    reference[2] = reference[0]

    room = block_of(reference).room

    assert room[0] == room[2] == 0
    assert (room[[1, 3]] > 0).all()


def test_a_single_unit_has_all_the_room():
    assert torch.equal(block_of(normal(1, 3)).room, torch.tensor([torch.inf], dtype=torch.float64))


def test_groups_move_as_wholes_and_units_inside_them():
    reference = normal(6, 5)
    # Groups of two swapped, and the first pair turned round.
    order = torch.tensor([3, 2, 0, 1, 4, 5])
    block = OrderBlock(layer(reference), described(reference, "grouped", size=3, inner=2), "units")

    found = block.begin(layer(reference[order]))()

    assert torch.equal(reference[order][found.move.perm], reference)


def test_an_order_across_groups_is_not_among_the_moves():
    reference = normal(4, 5)
    order = torch.tensor([0, 2, 1, 3])
    block = OrderBlock(layer(reference), described(reference, "grouped", size=2, inner=2), "units")

    found = block.begin(layer(reference[order]))()

    assert found.move.perm is None or not torch.equal(reference[order][found.move.perm], reference)


def test_a_planted_rotation_is_found():
    planted, reference = random_rotation(8, torch.Generator().manual_seed(2)), normal(8, 30)
    block = StreamBlock(layer(reference), described(reference, "orthogonal"), "units")

    found = block.solve(layer(planted.T @ reference))

    # One SVD of a small matrix in float64.
    torch.testing.assert_close(found.move.rotation, planted, rtol=0, atol=1e-12)
