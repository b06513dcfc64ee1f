"""How far matching moved every layer, as it is told: planted moves come out as angles and moved units."""

from __future__ import annotations

import torch

from popmi_core.matching import Matcher, describe_model
from popmi_core.matching.elements import Element, Move, apply
from popmi_core.matching.moves import told_moves
from popmi_core.matching.opm import Matched


def test_a_swap_of_two_units_is_told_as_two_moved_and_a_space_that_stayed_as_none(small_vit):
    model = small_vit()
    symmetry = describe_model(model, image_size=32)
    state, name = model.state_dict(), "blocks.0.mlp"
    order = torch.arange(symmetry.spaces[name].size)
    order[[0, 1]] = order[[1, 0]]
    matcher = Matcher(state, symmetry)
    matched = matcher.match(apply(state, symmetry, Element({name: Move(perm=order)})))
    told = told_moves(matched, matcher.symmetry)
    assert (told.moved[name], told.units[name]) == (2, len(order))
    assert told.moved["blocks.1.mlp"] == 0
    assert name not in told.angles
    assert told.units.keys() == matched.gains.keys()


def test_a_rotated_stream_is_told_by_its_angle_and_has_no_moved_units(small_vit):
    model = small_vit()
    symmetry = describe_model(model, image_size=32)
    (stream,) = [name for name, space in symmetry.spaces.items() if space.kind == "orthogonal"]
    # Two channels turn by 30 degrees, all others stay: the mean over 32 eigenvalues is 2 * 30 / 32.
    rotation, turn = torch.eye(32, dtype=torch.float64), torch.tensor(torch.pi / 6, dtype=torch.float64)
    rotation[:2, :2] = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    matched = Matched({}, {stream: 0.5}, {stream: False}, element=Element({stream: Move(rotation=rotation)}))
    told = told_moves(matched, symmetry)
    assert abs(told.angles[stream] - 60 / 32) < 1e-9
    assert stream not in told.moved
    assert told.units == {stream: 32}


def test_without_a_description_nothing_is_told():
    told = told_moves(Matched({}, {}, {}), None)
    assert (told.angles, told.moved, told.units) == ({}, {}, {})
