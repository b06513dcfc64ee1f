"""Laws of the point groups and of how they act: on images, token grids and regular channels."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from popmi_core.groups import act, channel_permutation, grid_orbits, grid_permutation, point_group

NAMES = ("C1", "C2", "C4", "D1", "D2", "D4")
ORDERS = {"C1": 1, "C2": 2, "C4": 4, "D1": 2, "D2": 4, "D4": 8}
groups = st.sampled_from(NAMES).map(point_group)
sides = st.integers(1, 9)


@st.composite
def group_and_elements(draw, count):
    group = draw(groups)
    return group, [draw(st.sampled_from(group.elements)) for _ in range(count)]


@given(groups)
def test_a_group_has_its_order_and_starts_with_the_identity(group):
    assert len(group) == len(set(group.elements)) == ORDERS[group.name]
    assert group.elements[0] == (0, False)


@given(group_and_elements(3))
def test_composition_stays_in_the_group_and_is_associative(drawn):
    group, (a, b, c) = drawn
    assert a.compose(b) in group.elements
    assert a.compose(b.compose(c)) == a.compose(b).compose(c)


@given(group_and_elements(1))
def test_an_inverse_is_in_the_group_and_undoes_its_element(drawn):
    group, (a,) = drawn
    assert a.inverse() in group.elements
    assert a.compose(a.inverse()) == a.inverse().compose(a) == group.elements[0]


@given(groups)
def test_generators_generate_the_group(group):
    reached = {group.elements[0]}
    for _ in range(len(group)):
        reached |= {generator.compose(element) for generator in group.generators for element in reached}
    assert reached == set(group.elements)


@given(group_and_elements(2), sides, st.integers(0, 2**31))
def test_acting_twice_is_acting_with_the_composition(drawn, side, seed):
    _, (a, b) = drawn
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(act(a, act(b, image)), act(a.compose(b), image))
    assert torch.equal(act(a.inverse(), act(a, image)), image)


@given(sides, st.integers(0, 3))
def test_turning_is_rot90_to_the_bit(side, turns):
    image = torch.randn(1, side, side, generator=torch.Generator().manual_seed(side))
    element = next(e for e in point_group("C4").elements if e.turns == turns)
    assert torch.equal(act(element, image), torch.rot90(image, turns, (-2, -1)))


@given(group_and_elements(1), sides)
def test_tokens_of_a_turned_image_are_the_permuted_tokens(drawn, side):
    _, (a,) = drawn
    image = torch.randn(3, side, side, generator=torch.Generator().manual_seed(side))
    tokens = image.flatten(1).T
    turned = act(a, image).flatten(1).T
    assert torch.equal(tokens[grid_permutation(a, side)], turned)
    assert torch.equal(act(a, image.permute(1, 2, 0), dims=(0, 1)).reshape(-1, 3), turned)


@given(group_and_elements(2))
def test_the_regular_representation_is_a_homomorphism(drawn):
    group, (a, b) = drawn
    field = torch.arange(len(group))
    after_both = field[channel_permutation(group, b)][channel_permutation(group, a)]
    assert torch.equal(after_both, field[channel_permutation(group, a.compose(b))])


@given(groups, sides)
def test_orbits_are_what_the_group_moves_onto_each_other(group, side):
    orbits = grid_orbits(group, side)
    for element in group.elements:
        assert torch.equal(act(element, orbits), orbits)
    # Burnside: the number of orbits is the mean number of cells each element fixes.
    cells = torch.arange(side * side)
    fixed = sum(int((grid_permutation(element, side) == cells).sum()) for element in group.elements)
    assert (int(orbits.max()) + 1) * len(group) == fixed
