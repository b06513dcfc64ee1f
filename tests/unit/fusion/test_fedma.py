"""FedMA: copies merge exactly, layers are matched in order, and freezing follows the rounds."""

from itertools import pairwise, permutations, product

import pytest
import torch
from torch import nn

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError, ModelError
from popmi_core.fusion import Update, average, fedma
from popmi_core.fusion.fedma import schedule
from popmi_core.fusion.merge_many import match_space
from popmi_core.fusion.permutable import forward_order, permutable, traced
from popmi_core.matching.check import describe_model
from popmi_core.matching.elements import Element, Move, act

CONFIG = FuseConfig()
# Permuted sums are added up in another order: float64 rounding, nothing else.
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}


def described(model, size):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetry = describe_model(model, image_size=size)
    return state, symmetry, permutable(symmetry, set(state), rule="test")


def mlp(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return described(nn.Sequential(nn.Flatten(), *layers[:-1]).double(), 4)


def updates(states, counts=None):
    return [Update(f"s{k}", state, 10 if counts is None else counts[k]) for k, state in enumerate(states)]


def same(found, expected):
    return all(torch.allclose(found[name], tensor, **ROUNDED) for name, tensor in expected.items())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shuffled_copies_give_the_model_back(count, shuffle):
    state, symmetry, group = mlp(48, 16, 16, 5)
    copies = [shuffle(state, group, seed) for seed in range(count)]

    fused = fedma.fuse(updates(copies), reference=copies[0], symmetry=symmetry, config=CONFIG)

    assert same(fused.state, copies[0])


def test_shuffled_copies_of_a_vit_give_the_model_back(small_vit, shuffle):
    state, symmetry, group = described(small_vit(), 32)
    copies = [shuffle(state, group, seed) for seed in range(3)]

    fused = fedma.fuse(updates(copies), reference=copies[0], symmetry=symmetry, config=CONFIG)

    assert same(fused.state, copies[0])


def test_drifted_models_are_averaged_plainly_bit_for_bit(small_vit):
    state, symmetry, _ = described(small_vit(), 32)
    sent = updates([{n: t + 1e-3 * torch.randn_like(t) for n, t in state.items()} for _ in range(3)], [10, 20, 5])

    fused = fedma.fuse(sent, reference=state, symmetry=symmetry, config=CONFIG)
    plain = average.fuse(sent, reference=state, config=CONFIG)

    assert all(torch.equal(fused.state[name], plain.state[name]) for name in state)


def test_one_layer_of_three_sites_is_matched_so_that_no_site_alone_does_better():
    models = [mlp(48, 4, 5, seed=seed)[0] for seed in range(3)]
    _, _, group = mlp(48, 4, 5)
    visit = forward_order(group, models[0], arriving=True)[0]

    matched = match_space(models[0], [traced(state, group) for state in models], group, visit)

    def spread(states):
        rows = [torch.cat([state["1.weight"], state["1.bias"][:, None]], dim=1) for state in states]
        return float(sum((row - sum(rows) / 3).square().sum() for row in rows))

    orders = list(permutations(range(4)))
    key = next(iter(group.units.spaces))
    for site, order in product(range(3), orders):
        changed = list(matched)
        changed[site] = act(matched[site], group.units, Element({key: Move(torch.tensor(order))}))
        # Equal up to the rounding of sums in another order.
        assert spread(matched) <= spread(changed) * (1 + 1e-12)


def test_an_architecture_that_is_not_described_is_refused(reference, make_updates):
    with pytest.raises(ModelError, match=r"rule fedma needs the architecture's symmetries but got none"):
        fedma.fuse(make_updates(2), reference=reference, symmetry=None, config=CONFIG)


def test_one_more_layer_is_frozen_after_every_round():
    _, symmetry, _ = mlp(48, 8, 8, 5)

    assert [schedule(symmetry, 3, server_round) for server_round in (1, 2, 3)] == [(), ("1",), ("1", "3")]


def test_few_rounds_freeze_several_layers_at_once(small_vit):
    _, symmetry, _ = described(small_vit(depth=4), 32)

    found = [schedule(symmetry, 4, server_round) for server_round in range(1, 5)]

    assert found[0] == ()
    assert all(set(before) < set(after) for before, after in pairwise(found))
    assert "blocks.0" in found[-1]
    assert "head" not in found[-1]


def test_many_rounds_start_anew_at_the_pixels():
    _, symmetry, _ = mlp(48, 8, 8, 5)

    assert [len(schedule(symmetry, 7, server_round)) for server_round in range(1, 8)] == [0, 1, 2, 0, 1, 2, 0]


def test_an_architecture_without_symmetry_has_nothing_to_freeze():
    _, symmetry, _ = mlp(48, 8, 5)

    assert schedule(symmetry.without(set(symmetry.spaces)), 3, 2) == ()


@pytest.mark.parametrize("server_round", [0, 4])
def test_a_round_outside_the_run_is_refused(server_round):
    _, symmetry, _ = mlp(48, 8, 5)

    with pytest.raises(ConfigError, match=r"fedma: round \d of 3, expected 1 to 3"):
        schedule(symmetry, 3, server_round)
