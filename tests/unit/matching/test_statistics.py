"""Activation statistics: sums that add up, and planted moves found again from what the units do."""

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order
from popmi_core.matching.check import describe_model
from popmi_core.matching.elements import apply, random_element
from popmi_core.matching.opm import Matcher
from popmi_core.matching.probes import probe_images
from popmi_core.matching.procrustes import stream_rotation
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import as_scores, cross_statistics, from_arrays

MLP, HEADS = "blocks.1.mlp", "blocks.1.heads"


@pytest.fixture
def planted(small_vit, generator):
    """A model, its symmetry, a moved copy, the move, and probe images."""
    model = small_vit()
    symmetry = describe_model(model)
    element = random_element(symmetry, generator)
    state = model.state_dict()
    images = probe_images((3, 32, 32), 24, generator).double()
    return model, symmetry, state, apply(state, symmetry, element), element, images


def test_a_planted_rotation_is_found_from_activations(planted):
    model, symmetry, state, moved, element, images = planted

    statistics = cross_statistics(model, state, moved, symmetry, images)
    found = stream_rotation(as_scores(statistics, symmetry.spaces["stream"]))

    # A polar factor of a covariance whose least singular value is about 1e-4 of the largest.
    torch.testing.assert_close(found, element.moves["stream"].rotation.T, rtol=0, atol=1e-8)


def test_planted_orders_of_hidden_units_are_found_from_activations(planted):
    model, symmetry, state, moved, element, images = planted

    statistics = cross_statistics(model, state, moved, symmetry, images)
    found = best_order(as_scores(statistics, symmetry.spaces[MLP]))

    assert torch.equal(element.moves[MLP].perm[found], torch.arange(len(found)))


def test_the_score_of_two_heads_does_not_depend_on_the_bases_inside(planted):
    model, symmetry, state, moved, element, images = planted
    space = symmetry.spaces[HEADS]

    scores = as_scores(cross_statistics(model, state, moved, symmetry, images), space, "value")

    blocks = scores.reshape(space.size, space.inner, space.size, space.inner).transpose(1, 2)
    table = torch.linalg.svdvals(blocks).sum(-1) / space.inner
    # All canonical correlations of a head with itself are 1, whatever the map inside.
    own = table.gather(1, torch.argsort(element.moves[HEADS].perm)[:, None])
    torch.testing.assert_close(own, torch.ones_like(own), rtol=0, atol=1e-6)
    assert torch.equal(element.moves[HEADS].perm[best_order(table)], torch.arange(space.size))


def test_a_start_from_activations_undoes_every_planted_order_and_rotation(planted):
    model, symmetry, state, moved, element, images = planted

    start = start_from(cross_statistics(model, state, moved, symmetry, images), symmetry)

    assert set(start.moves) == set(symmetry.spaces)
    for name, move in start.moves.items():
        if move.perm is not None:
            assert torch.equal(element.moves[name].perm[move.perm], torch.arange(len(move.perm)))
    # As above, from a covariance with a wide spectrum.
    turned = start.moves["stream"].rotation @ element.moves["stream"].rotation
    torch.testing.assert_close(turned, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_descent_goes_all_the_way_from_a_start_from_activations(planted):
    model, symmetry, state, moved, _, images = planted
    start = start_from(cross_statistics(model, state, moved, symmetry, images), symmetry)

    found = Matcher(state, symmetry).match(moved, starts=[start])

    # Rounding of squared distances of weights of size about 10.
    assert found.distances[-1] < 1e-16


def test_correlations_of_a_model_with_itself_are_one(planted):
    model, symmetry, state, _, _, images = planted

    scores = as_scores(cross_statistics(model, state, state, symmetry, images), symmetry.spaces[MLP])

    torch.testing.assert_close(scores.diagonal(), torch.ones(len(scores), dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(scores.abs().max()) <= 1 + 1e-9


def test_sums_of_two_sites_are_the_sums_of_their_images_together(planted):
    model, symmetry, state, moved, _, images = planted

    def gather(part):
        return cross_statistics(model, state, moved, symmetry, part, batch_size=5)

    together, apart = gather(images), gather(images[:7]) + gather(images[7:])

    for name, value in together.to_arrays().items():
        # The same numbers added in another order.
        torch.testing.assert_close(apart.to_arrays()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_order_and_size_of_batches_do_not_matter(planted, batch_size, generator):
    model, symmetry, state, moved, _, images = planted
    mixed = images[torch.randperm(len(images), generator=generator)]

    one = cross_statistics(model, state, moved, symmetry, images, batch_size=24)
    other = cross_statistics(model, state, moved, symmetry, mixed, batch_size=batch_size)

    for key, moments in one.moments.items():
        torch.testing.assert_close(other.moments[key].cross, moments.cross, rtol=1e-9, atol=1e-9)


def test_what_is_sent_does_not_grow_with_the_images(planted):
    model, symmetry, state, moved, _, images = planted

    few, many = (cross_statistics(model, state, moved, symmetry, part).to_arrays() for part in (images[:2], images))

    assert {name: value.shape for name, value in few.items()} == {name: value.shape for name, value in many.items()}


def test_the_wire_keeps_every_number(planted):
    model, symmetry, state, moved, _, images = planted
    sent = cross_statistics(model, state, moved, symmetry, images)

    read = from_arrays(sent.to_arrays(), symmetry, site="a")

    for key, moments in sent.moments.items():
        assert torch.equal(read.moments[key].cross, moments.cross)
        assert torch.equal(read.moments[key].candidate, moments.candidate)


def test_neither_model_nor_states_are_changed(planted):
    model, symmetry, state, moved, _, images = planted
    before = {name: tensor.clone() for name, tensor in state.items()}

    cross_statistics(model, state, moved, symmetry, images)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_images_are_refused(planted):
    model, symmetry, state, moved, _, images = planted
    with pytest.raises(UpdateError, match="statistics: 0 images and 6 taps"):
        cross_statistics(model, state, moved, symmetry, images[:0])


def test_infinite_activations_are_refused(planted):
    model, symmetry, state, moved, _, images = planted
    broken = moved | {"patch_embed.proj.bias": torch.full_like(moved["patch_embed.proj.bias"], torch.inf)}
    with pytest.raises(UpdateError, match=r"an activation of '.*' is NaN or infinite"):
        cross_statistics(model, state, broken, symmetry, images)


def test_statistics_of_another_model_are_refused(planted):
    model, symmetry, state, moved, _, images = planted
    sent = cross_statistics(model, state, moved, symmetry, images).to_arrays()

    with pytest.raises(UpdateError, match=r"site a: statistics hold or lack 'stream\|count'"):
        from_arrays({name: value for name, value in sent.items() if name != "stream|count"}, symmetry, site="a")
    with pytest.raises(UpdateError, match=r"site a: statistic 'stream\|cross' has shape \(3, 3\)"):
        from_arrays(sent | {"stream|cross": sent["stream|cross"][:3, :3]}, symmetry, site="a")


def test_sites_that_report_other_spaces_do_not_add(planted):
    model, symmetry, state, moved, _, images = planted
    whole = cross_statistics(model, state, moved, symmetry, images)
    part = cross_statistics(model, state, moved, symmetry.only("permutation"), images)
    with pytest.raises(UpdateError, match=r"only one of two sites reports 'blocks\.0\.heads:value'"):
        whole + part


def test_a_space_without_activations_has_no_scores(planted):
    model, symmetry, state, moved, _, images = planted
    statistics = cross_statistics(model, state, moved, symmetry.only("permutation"), images)
    with pytest.raises(UpdateError, match=r"statistics say nothing of 'stream', only of blocks\.0\.mlp"):
        as_scores(statistics, symmetry.spaces["stream"])
