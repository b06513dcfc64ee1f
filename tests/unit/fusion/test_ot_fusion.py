"""OT-Fusion: hard maps put planted orders back, soft ones mix, streams and shortcuts have one map."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from torch import nn

from popmi_core.config import FuseConfig
from popmi_core.errors import ModelError, UpdateError
from popmi_core.fusion import Update, ot_fusion, ot_fusion_soft
from popmi_core.fusion.permutable import forward_order, permutable
from popmi_core.fusion.transport import as_move, assign, entropic, exact, solve
from popmi_core.matching.check import describe_model
from popmi_core.matching.statistics import cross_statistics
from popmi_core.matching.symmetry import Space

CONFIG = FuseConfig()
# Permuted sums are added up in another order: float64 rounding, nothing else.
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}


def sequential(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1]).double()


def described(model, size):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetry = describe_model(model, image_size=size)
    return state, symmetry, permutable(symmetry, set(state), rule="test")


def updates(*states):
    return [Update(f"s{k}", state, 10) for k, state in enumerate(states)]


def same(found: Mapping, expected: Mapping) -> bool:
    return all(torch.allclose(found[name], tensor, **ROUNDED) for name, tensor in expected.items())


def run(model, state):
    model.load_state_dict(dict(state))
    with torch.no_grad():
        return model(torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_two_mlps_of_one_function_fuse_into_that_function(shuffle):
    # The paper's first sanity check (section 5.1): aligned copies lose nothing, averaged copies nearly everything.
    model = sequential(48, 20, 20, 5)
    state, symmetry, group = described(model, 4)
    twin = shuffle(state, group, 1)
    expected = run(model, state)

    fused = ot_fusion.fuse(updates(state, twin), reference=state, symmetry=symmetry, config=CONFIG)
    plain = {name: (state[name] + twin[name]) / 2 for name in state}

    assert torch.allclose(run(model, fused.state), expected, **ROUNDED)
    assert (run(model, plain) - expected).norm() > 0.1 * expected.norm()


def test_a_shuffled_vit_is_put_back_by_its_one_stream_map(small_vit, shuffle):
    state, symmetry, group = described(small_vit(), 32)

    fused = ot_fusion.fuse(updates(state, shuffle(state, group, 2)), reference=state, symmetry=symmetry, config=CONFIG)

    assert same(fused.state, state)
    assert fused.notes["stream"].startswith("stayed in place: s0 100%, s1 ")
    assert fused.notes["all"] == "units compared by weights"


@pytest.mark.parametrize("block", [timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck])
def test_shortcuts_of_a_resnet_do_not_break_it(block, shuffle):
    # The known complaint of the authors' code: shapes of the skips' maps do not fit.
    torch.manual_seed(0)
    model = timm.models.ResNet(block, (2, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16)).double().eval()
    state, symmetry, group = described(model, 32)

    fused = ot_fusion.fuse(updates(state, shuffle(state, group, 2)), reference=state, symmetry=symmetry, config=CONFIG)

    assert same(fused.state, state)


def test_many_models_are_all_aligned_to_the_reference(shuffle):
    state, symmetry, group = described(sequential(48, 12, 12, 5), 4)
    copies = [shuffle(state, group, seed) for seed in range(4)]

    fused = ot_fusion.fuse(updates(*copies), reference=copies[0], symmetry=symmetry, config=CONFIG)

    assert same(fused.state, copies[0])
    assert fused.weights == dict.fromkeys(("s0", "s1", "s2", "s3"), 0.25)


def test_activations_put_a_shuffled_mlp_back(shuffle):
    model = sequential(48, 20, 20, 5)
    state, symmetry, group = described(model, 4)
    moved = shuffle(state, group, 1)
    images = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = {f"s{k}": cross_statistics(model, state, s, symmetry, images) for k, s in enumerate((state, moved))}

    fused = ot_fusion.fuse(
        updates(state, moved), reference=state, symmetry=symmetry, config=CONFIG, statistics=statistics
    )

    assert same(fused.state, state)


def test_what_activations_do_not_show_of_a_head_is_matched_by_weights(small_vit, shuffle):
    model = small_vit()
    state, symmetry, group = described(model, 32)
    moved = shuffle(state, group, 1)
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = {f"s{k}": cross_statistics(model, state, s, symmetry, images) for k, s in enumerate((state, moved))}

    fused = ot_fusion.fuse(
        updates(state, moved), reference=state, symmetry=symmetry, config=CONFIG, statistics=statistics
    )

    assert same(fused.state, state)


def test_a_site_without_statistics_is_named():
    state, symmetry, _ = described(sequential(48, 6, 5), 4)

    with pytest.raises(UpdateError, match=r"site s0: no activation statistics came, though"):
        ot_fusion.fuse(updates(state), reference=state, symmetry=symmetry, config=CONFIG, statistics={})


@pytest.mark.parametrize("rule", [ot_fusion, ot_fusion_soft])
def test_an_architecture_that_is_not_described_is_refused(rule, reference, make_updates):
    with pytest.raises(ModelError, match=r"needs the architecture's symmetries but got none"):
        rule.fuse(make_updates(2), reference=reference, symmetry=None, config=CONFIG)


def test_soft_maps_become_hard_as_the_entropy_is_taken_away(shuffle):
    state, symmetry, group = described(sequential(48, 10, 10, 5), 4)
    other = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in shuffle(state, group, 1).items()}
    hard = ot_fusion.fuse(updates(state, other), reference=state, symmetry=symmetry, config=CONFIG).state

    gaps = []
    for softness in (1.0, 0.1, 1e-3):
        soft = ot_fusion_soft.fuse(
            updates(state, other), reference=state, symmetry=symmetry, config=FuseConfig(entropic_reg=softness)
        ).state
        gaps.append(max(float((soft[name] - hard[name]).abs().max()) for name in state))

    assert gaps[0] > gaps[1] > gaps[2]
    # What is left of exp(-gap / 1e-3) between best and second best partner.
    assert gaps[2] < 1e-9


def test_a_soft_vit_is_finite_and_keeps_the_reference_as_it_is(small_vit, shuffle):
    state, symmetry, group = described(small_vit(), 32)
    other = shuffle(state, group, 1)

    alone = ot_fusion_soft.fuse(updates(state), reference=state, symmetry=symmetry, config=CONFIG)
    fused = ot_fusion_soft.fuse(updates(state, other), reference=state, symmetry=symmetry, config=CONFIG)

    assert all(torch.equal(alone.state[name], tensor) for name, tensor in state.items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fused.state.values())


def test_the_cost_of_two_heads_does_not_depend_on_the_order_inside():
    space = Space("heads", "heads", 3, 4, maps={"value": "linear"})
    cost = torch.rand(12, 12, dtype=torch.float64)
    mixed = cost[:, torch.cat([4 * head + torch.randperm(4) for head in range(3)])]

    plans = [solve(space, {"value": table}, exact, {"": "a", "value": "b"}) for table in (cost, mixed)]

    np.testing.assert_array_equal(plans[0][""], plans[1][""])


def test_channels_never_leave_their_head():
    space = Space("heads", "heads", 2, 3, maps={"query_key": "linear", "value": "fixed"})
    costs = {part: torch.rand(6, 6, dtype=torch.float64) for part in ("query_key", "value")}

    plans = solve(space, costs, exact, {"query_key": "a", "value": "b"})

    for plan in plans.values():
        held = plan.reshape(2, 3, 2, 3).sum(axis=(1, 3))
        np.testing.assert_allclose(np.sort(held.ravel()), [0, 0, 3, 3])
    order = plans["value"].reshape(2, 3, 2, 3).max(axis=(1, 3)).argmax(axis=1)
    # A part whose basis is fixed keeps its channels in place: only whole heads move.
    np.testing.assert_array_equal(plans["value"], np.kron(np.eye(2)[order], np.eye(3)))


def test_regular_fields_move_by_shifts_only_even_softly():
    shifts = tuple(tuple((channel + shift) % 4 for channel in range(4)) for shift in range(4))
    space = Space("fields", "fields", 3, 4, shifts=shifts)
    plan = solve(space, {"": torch.rand(12, 12, dtype=torch.float64)}, entropic(0.1), {"": "a"})[""]
    turn = np.kron(np.eye(3), np.eye(4)[list(shifts[1])])

    # Commuting with the group is what keeps a layer equivariant; the plan's entries are of order one.
    np.testing.assert_allclose(plan @ turn, turn @ plan, atol=1e-12)


def test_a_plan_that_moves_nothing_is_no_move():
    assert as_move(np.eye(4)) is None
    moved = as_move(assign(-np.eye(4)[[1, 0, 2, 3]]))
    assert moved is not None
    assert moved.perm is not None
    assert moved.perm.tolist() == [1, 0, 2, 3]


def test_equal_units_share_evenly():
    np.testing.assert_allclose(entropic(0.05)(np.zeros((3, 3))), np.full((3, 3), 1 / 3))
    np.testing.assert_allclose(entropic(0.05)(np.ones((1, 1))), [[1.0]])


def test_a_pass_takes_the_embedding_before_all_writers_of_a_stream():
    torch.manual_seed(0)
    model = timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16))
    state, _, group = described(model.double().eval(), 32)

    visits = forward_order(group, state, arriving=True)

    assert visits[0].space == "stem"
    assert {axis.tensor.split(".")[0] for axis in visits[0].axes} == {"conv1", "bn1"}
    assert len(visits) == 2 * len(group.spaces)
