"""What every rule promises, and the plain and robust rules one by one."""

import random
import typing
from dataclasses import replace

import pytest
import torch

from popmi_core.config import FuseConfig, Rule
from popmi_core.errors import ConfigError, UpdateError
from popmi_core.fusion import RULES, Update, fuse, needs
from popmi_core.fusion.krum import krum_scores, squared_distances
from popmi_core.matching import Symmetry

# Rules that take any state; those that need Gram matrices or symmetries are tested with them.
ANY = [rule for rule in RULES if not (needs(rule).symmetry or needs(rule).grams)]


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rule", ANY)
def test_the_order_of_the_replies_does_not_change_a_bit(rule, reference, make_updates, scorer):
    updates = make_updates(7)
    shuffled = random.Random(3).sample(updates, len(updates))

    assert same(
        fuse(rule, updates, reference=reference, scorer=scorer).state,
        fuse(rule, shuffled, reference=reference, scorer=scorer).state,
    )


@pytest.mark.parametrize("rule", ANY)
def test_names_shapes_and_number_formats_stay(rule, reference, make_updates, scorer):
    fused = fuse(rule, make_updates(5), reference=reference, scorer=scorer).state

    assert {n: (t.shape, t.dtype) for n, t in fused.items()} == {n: (t.shape, t.dtype) for n, t in reference.items()}


@pytest.mark.parametrize("rule", ANY)
def test_identical_models_fuse_to_themselves(rule, reference, make_updates, scorer):
    one = make_updates(1)[0]
    updates = [replace(one, site=f"site_{index}", num_examples=1) for index in range(5)]

    assert same(fuse(rule, updates, reference=reference, scorer=scorer).state, one.state)


@pytest.mark.parametrize("rule", ANY)
def test_the_weights_of_the_sites_sum_to_one(rule, reference, make_updates, scorer):
    weights = fuse(rule, make_updates(6), reference=reference, scorer=scorer).weights

    assert sorted(weights) == [f"site_{index}" for index in range(6)]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", sorted(set(ANY) - {"krum"}))
def test_a_lone_site_is_returned_bit_for_bit(rule, reference, make_updates, scorer):
    updates = make_updates(1)

    assert same(fuse(rule, updates, reference=reference, scorer=scorer).state, updates[0].state)


@pytest.mark.parametrize("rule", ANY)
def test_the_updates_are_not_changed(rule, reference, make_updates, scorer):
    updates = make_updates(5)

    fused = fuse(rule, updates, reference=reference, scorer=scorer).state
    for tensor in fused.values():
        tensor.zero_()

    assert all(same(update.state, fresh.state) for update, fresh in zip(updates, make_updates(5), strict=True))


def test_the_average_weighs_by_examples(reference, make_updates):
    first, second = make_updates(2)

    fused = fuse("average", [replace(first, num_examples=30), replace(second, num_examples=10)], reference=reference)

    expected = 0.75 * first.state["layer.weight"] + 0.25 * second.state["layer.weight"]
    # One rounding to float32.
    torch.testing.assert_close(fused.state["layer.weight"], expected, rtol=1e-6, atol=1e-7)
    assert fused.weights == {"site_0": 0.75, "site_1": 0.25}


def test_batch_norm_statistics_are_averaged_and_counters_stay_whole(reference, make_updates):
    updates = [replace(update, num_examples=1) for update in make_updates(3)]

    fused = fuse("average", updates, reference=reference).state

    expected = torch.stack([update.state["norm.running_var"] for update in updates]).mean(dim=0)
    torch.testing.assert_close(fused["norm.running_var"], expected)
    assert fused["norm.num_batches_tracked"] == 10


def test_one_wild_site_does_not_move_the_robust_rules(reference, make_updates):
    honest = make_updates(5)
    wild = Update("wild", {name: tensor * 0 + 1000 for name, tensor in honest[0].state.items()}, 10**6)
    span = torch.stack([update.state["layer.weight"] for update in honest])

    for rule in ("median", "trimmed_mean", "krum"):
        fused = fuse(rule, [*honest, wild], reference=reference).state["layer.weight"]
        assert bool((fused <= span.amax(0)).all() and (fused >= span.amin(0)).all()), rule
    assert fuse("average", [*honest, wild], reference=reference).state["layer.weight"].min() > 900


def test_too_few_sites_to_trim_is_said(reference, make_updates):
    fused = fuse("trimmed_mean", make_updates(3), reference=reference, config=FuseConfig(trim=0.2))

    assert fused.notes == {"all": "nothing trimmed: trim 0.2 of 3 sites is less than one site"}


def test_krum_takes_one_update_whole_and_names_it(reference, make_updates):
    updates = make_updates(5)
    centre = torch.stack([update.state["layer.weight"] for update in updates]).mean(dim=0)
    updates[3].state["layer.weight"].copy_(centre)

    fused = fuse("krum", updates, reference=reference)

    assert fused.weights == {f"site_{index}": float(index == 3) for index in range(5)}
    assert same(fused.state, updates[3].state)
    assert fused.notes == {"all": "the update of site_3 as it is"}


def test_krum_scores_count_the_nearest_others_only(make_updates):
    table = torch.tensor([[0.0, 1, 4, 9], [1, 0, 2, 8], [4, 2, 0, 7], [9, 8, 7, 0]])

    # Four sites, none faulty: two nearest others each.
    assert krum_scores(table, faulty=0).tolist() == [5, 3, 6, 15]


def test_distances_between_near_models_do_not_cancel(make_updates):
    state = {"w": torch.full((4,), 1e4, dtype=torch.float64)}
    near = {"w": state["w"] + 1e-6}

    table = squared_distances([Update("a", state, 1), Update("b", near, 1)])

    # The difference of two numbers near 1e4 is exact to 1e-12; inner products would leave nothing.
    assert float(table[0, 1]) == pytest.approx(4e-12, rel=1e-5)


def test_krum_with_too_few_sites_says_what_to_do(reference, make_updates):
    with pytest.raises(UpdateError, match=r"krum with faulty=1 got 4 updates, expected at least 5. Lower fuse.faulty"):
        fuse("krum", make_updates(4), reference=reference)


def test_an_unknown_rule_lists_the_known_ones(reference, make_updates):
    with pytest.raises(ConfigError, match=r"no fusion rule 'mode', expected one of average, best_single"):
        fuse("mode", make_updates(2), reference=reference)


def test_no_update_is_an_error(reference):
    with pytest.raises(UpdateError, match="no site sent an update"):
        fuse("average", [], reference=reference)


def test_a_site_that_came_twice_is_named(reference, make_updates):
    with pytest.raises(UpdateError, match="site site_0 sent two updates in one round"):
        fuse("average", make_updates(1) * 2, reference=reference)


def test_a_missing_tensor_is_named(reference, make_updates):
    updates = make_updates(2)
    del updates[1].state["layer.weight"]

    with pytest.raises(UpdateError, match=r"site site_1: 'layer.weight' is missing from the update"):
        fuse("average", updates, reference=reference)


def test_a_stranger_tensor_is_named(reference, make_updates):
    updates = make_updates(2)
    updates[1].state["extra"] = torch.zeros(1)

    with pytest.raises(UpdateError, match=r"site site_1: 'extra' is not part of the global model"):
        fuse("average", updates, reference=reference)


def test_a_shape_that_would_broadcast_is_refused(reference, make_updates):
    updates = make_updates(2)
    updates[0].state["layer.weight"] = torch.zeros(1, 4)

    with pytest.raises(UpdateError, match=r"site site_0: 'layer.weight' has shape \(1, 4\), expected \(3, 4\)"):
        fuse("average", updates, reference=reference)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_refused(reference, make_updates, value):
    updates = make_updates(2)
    updates[0].state["layer.weight"][0, 0] = value

    with pytest.raises(UpdateError, match=r"site site_0: 'layer.weight' holds NaN or infinity"):
        fuse("average", updates, reference=reference)


def test_a_negative_count_is_refused(reference, make_updates):
    updates = [replace(update, num_examples=-1) for update in make_updates(2)]

    with pytest.raises(UpdateError, match="site site_0: num_examples is -1, expected a count"):
        fuse("average", updates, reference=reference)


def test_no_example_anywhere_is_refused(reference, make_updates):
    updates = [replace(update, num_examples=0) for update in make_updates(2)]

    with pytest.raises(UpdateError, match="every site reports num_examples 0"):
        fuse("average", updates, reference=reference)


def test_a_rule_that_matches_by_activations_says_that_it_needs_them(reference, make_updates):
    assert needs("git-rebasin-activations").statistics
    with pytest.raises(UpdateError, match="rule git_rebasin_activations matches by activations but got no statistics"):
        fuse("git_rebasin_activations", make_updates(2), reference=reference, symmetry=Symmetry("none", {}, ()))


def test_an_option_that_the_rule_does_not_have_is_refused(reference, make_updates):
    with pytest.raises(ConfigError, match="rule average has no option 'anchor'"):
        fuse("average", make_updates(2), reference=reference, anchor="medoid")


def test_krum_needs_as_many_sites_as_it_shall_withstand():
    assert needs("krum", FuseConfig(faulty=2)).sites == 7


def test_every_rule_of_the_configuration_is_there():
    assert set(typing.get_args(Rule)) == {*RULES, "ensemble"}
