"""Every action is an action of its group: the same laws for grids, rotations, channels and words."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from popmi_core.errors import ModelError
from popmi_core.groups import channel_permutation, image_action, orbit, point_group
from popmi_core.groups.finite import JointAction, SquareAction
from popmi_core.groups.permutations import ChannelAction, PermutationAction, TokenAction, generated
from popmi_core.groups.rotations import RotationAction

# The third symmetric group: the smallest one that does not commute.
S3 = generated([(1, 0, 2), (1, 2, 0)])


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def regular_maps(name):
    group = point_group(name)
    return JointAction(SquareAction(group), ChannelAction.regular(group))


# name -> (action, an input it moves)
EXACT = {
    **{f"images {name}": (image_action(name), noise(2, 3, 5, 5)) for name in ("C1", "C2", "C4", "D1", "D2", "D4")},
    "grid of tokens": (SquareAction(point_group("D4"), dims=(1, 2)), noise(2, 4, 4, 3)),
    "four rotations": (RotationAction(4), noise(2, 3, 6, 6)),
    "colours": (ChannelAction(S3), noise(2, 6, 4, 4)),
    "regular channels": (ChannelAction.regular(point_group("D4")), noise(2, 16)),
    "regular maps": (regular_maps("D4"), noise(2, 8, 4, 4)),
    "texts": (TokenAction(S3, "S3"), torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])),
    "scores of words": (TokenAction(S3, "S3"), noise(2, 4, 3)),
}
exact = pytest.mark.parametrize("case", EXACT)


@exact
def test_the_first_element_does_nothing(case):
    action, x = EXACT[case]
    assert torch.equal(action.act(0, x), x)
    assert torch.equal(action.undo(0, x), x)
    assert action.exact


@exact
def test_acting_twice_is_acting_with_the_product(case):
    action, x = EXACT[case]
    for outer in range(len(action)):
        for inner in range(len(action)):
            assert torch.equal(action.act(action.compose(outer, inner), x), action.act(outer, action.act(inner, x)))


@exact
def test_what_was_done_is_undone(case):
    action, x = EXACT[case]
    for index in range(len(action)):
        assert torch.equal(action.undo(index, action.act(index, x)), x)
        assert torch.equal(action.act(action.inverse(index), x), action.undo(index, x))
        assert action.compose(action.inverse(index), index) == 0


@exact
def test_different_elements_do_different_things(case):
    action, x = EXACT[case]
    seen = [action.act(index, x) for index in range(len(action))]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


@given(first=st.permutations(range(5)), second=st.permutations(range(5)))
def test_generators_give_a_closed_group(first, second):
    group = PermutationAction(generated([first, second]), "random")
    assert group.permutations[0] == tuple(range(5))
    assert tuple(first) in group.permutations
    assert 120 % len(group) == 0  # Lagrange: the order divides that of S5


def test_an_orbit_lies_element_after_element_along_the_batch():
    action, x = image_action("D4"), noise(3, 1, 4, 4)
    rows = orbit(action, x).reshape(8, 3, 1, 4, 4)
    for index in range(8):
        assert torch.equal(rows[index], action.act(index, x))


def test_quarter_turns_among_many_rotations_move_pixels():
    action, x = RotationAction(16), noise(2, 3, 7, 7)
    for turns in range(4):
        assert torch.equal(action.act(4 * turns, x), torch.rot90(x, turns, (-2, -1)))
    assert not action.exact
    assert action.name == "C16"


@pytest.mark.parametrize("side", [6, 7])
def test_rotations_commute_with_quarter_turns(side):
    action, x = RotationAction(8), noise(2, 1, side, side)
    for index in range(8):
        turned = action.act(index, torch.rot90(x, 1, (-2, -1)))
        # Rounding of float64 only: the kernel and the mirrored border are the same after a quarter turn.
        torch.testing.assert_close(turned, action.act(action.compose(index, 2), x), rtol=0, atol=1e-12)


def blob(side, row, column, width=3.0):
    places = torch.arange(side, dtype=torch.float64)
    return torch.exp(-((places[:, None] - row) ** 2 + (places[None] - column) ** 2) / (2 * width**2))[None, None]


def disk(side):
    """Where neither corners nor their mirror images come: the disk in the square."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return places[:, None] ** 2 + places[None] ** 2 < (side / 2 - 2) ** 2


def test_a_rotation_takes_a_blob_counter_clockwise_to_its_place():
    side, middle, radius = 41, 20, 9
    start = blob(side, middle, middle + radius)
    for index in range(8):
        angle = index * np.pi / 4
        there = blob(side, middle - radius * np.sin(angle), middle + radius * np.cos(angle))
        # Keys' kernel is of third order: a blob 3 pixels wide is met to a few thousandths of its height.
        assert (RotationAction(8).act(index, start) - there)[..., disk(side)].abs().max() < 5e-3


def test_a_rotation_of_a_smooth_image_is_undone_up_to_interpolation():
    action, x = RotationAction(16), blob(41, 14, 24)
    for index in range(16):
        assert (action.undo(index, action.act(index, x)) - x)[..., disk(41)].abs().max() < 1e-2


def test_bicubic_turns_a_quadratic_without_error():
    places = torch.arange(16, dtype=torch.float64) - 7.5
    right, up = places[None], -places[:, None]
    angle = np.pi / 4
    before = 2 * right**2 + right * up - up**2 + 3 * up
    u = right * np.cos(angle) + up * np.sin(angle)
    v = up * np.cos(angle) - right * np.sin(angle)
    inside = (u.abs() < 5) & (v.abs() < 5)  # no tap beyond the border
    after = RotationAction(8).act(1, before[None, None])[0, 0]
    torch.testing.assert_close(after[inside], (2 * u**2 + u * v - v**2 + 3 * v)[inside])


def test_a_rotation_has_derivatives_of_every_kind():
    x, action = noise(1, 1, 5, 5), RotationAction(8)
    _, forward = torch.func.jvp(lambda image: action.act(1, image), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(forward, torch.ones_like(x))  # weights sum to one
    with torch.inference_mode():
        RotationAction(8).act(3, noise(1, 1, 13, 13))
    image = noise(1, 1, 13, 13).requires_grad_()
    RotationAction(8).act(3, image).sum().backward()  # what inference kept does not spoil training
    assert image.grad is not None


def test_swapped_words_change_the_text_and_the_scores_alike():
    words = ("the", "he", "she", "doctor")
    action = TokenAction.swapping(words, [("he", "she")])
    text = torch.tensor([[0, 1, 3, 2]])
    assert action.act(1, text).tolist() == [[0, 2, 3, 1]]
    one_hot = functional.one_hot(text, len(words)).double()
    assert torch.equal(action.act(1, one_hot), functional.one_hot(action.act(1, text), len(words)).double())


def test_a_regular_channel_action_is_the_permutation_of_the_point_group():
    group, field = point_group("D4"), noise(1, 8)
    for index, element in enumerate(group.elements):
        moved = ChannelAction.regular(group).act(index, field)
        assert torch.equal(moved, field[:, channel_permutation(group, element)])


@pytest.mark.parametrize("name", ["C", "D8", "SO2", "c4", "C0", "C400", ""])
def test_a_group_that_does_not_act_on_images_is_refused(name):
    with pytest.raises(ModelError, match=r"does not act on images|rotations were asked for"):
        image_action(name)


@pytest.mark.parametrize("name", ["C4", "C8"])
def test_images_that_are_not_square_are_refused(name):
    with pytest.raises(ModelError, match=r"4x6 pixels.* expected square"):
        image_action(name).act(1, noise(1, 3, 4, 6))


def test_a_list_that_is_no_group_is_refused():
    with pytest.raises(ModelError, match="not the identity"):
        PermutationAction([(1, 0)], "swap")
    with pytest.raises(ModelError, match="is not among its 2 elements"):
        PermutationAction([(0, 1, 2), (1, 2, 0)], "cyclic")
    with pytest.raises(ModelError, match=r"no permutation of 0 to 2"):
        PermutationAction([(0, 1, 2), (1, 1, 0)], "broken")
    with pytest.raises(ModelError, match="not the identity"):
        PermutationAction([], "empty")
    with pytest.raises(ModelError, match="at least one generator"):
        generated([])
    with pytest.raises(ModelError, match="no permutation"):
        generated([(0, 0)])
    with pytest.raises(ModelError, match="more than 1024 elements"):
        generated([(1, 0, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6, 0)])


def test_actions_of_different_groups_are_not_joined():
    with pytest.raises(ModelError, match=r"one group in every part, got C4 \(order 4\), regular D4 \(order 8\)"):
        JointAction(SquareAction(point_group("C4")), ChannelAction.regular(point_group("D4")))


def test_inputs_of_the_wrong_kind_are_refused():
    swap = TokenAction([(0, 1, 2), (1, 0, 2)], "swap")
    with pytest.raises(ModelError, match="7 channels, expected a multiple of 8"):
        ChannelAction.regular(point_group("D4")).act(1, noise(1, 7))
    with pytest.raises(ModelError, match="scores over 4 tokens, expected 3"):
        swap.act(1, noise(2, 4))
    with pytest.raises(ModelError, match="token ids 0 to 3, expected 0 to 2"):
        swap.act(1, torch.tensor([[0, 3]]))
    with pytest.raises(ModelError, match="'nurse' is not in the vocabulary"):
        TokenAction.swapping(("he", "she"), [("he", "nurse")])
    with pytest.raises(ModelError, match="'he' is in two pairs"):
        TokenAction.swapping(("he", "she", "they"), [("he", "she"), ("he", "they")])
