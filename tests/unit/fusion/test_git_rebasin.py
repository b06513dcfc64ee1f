"""Git Re-Basin: planted orders are found, everything in one basis stays, and every refusal says why."""

from itertools import pairwise, permutations

import pytest
import timm
import torch
from torch import nn

from popmi_core.config import FuseConfig
from popmi_core.errors import ModelError, UpdateError
from popmi_core.fusion import Update, average, git_rebasin, git_rebasin_activations
from popmi_core.fusion.merge_many import descend, likeness, match_weights
from popmi_core.fusion.permutable import forward_order, move, permutable, traced
from popmi_core.matching.builder import Builder
from popmi_core.matching.check import describe_model
from popmi_core.matching.elements import Move
from popmi_core.matching.statistics import cross_statistics

CONFIG = FuseConfig()
# Permuted sums are added up in another order: float64 rounding, nothing else.
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}


def chain(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def described(model, size=None):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetry = describe_model(model, image_size=size)
    return state, symmetry, permutable(symmetry, set(state), rule="test")


def plain_chain(*widths, seed=0):
    """A chain of linear layers, described by hand."""
    state = {name: tensor.clone() for name, tensor in chain(*widths, seed=seed).state_dict().items()}
    build, last = Builder("chain", state), None
    for index, width in enumerate(widths[1:]):
        name = str(2 * index)
        writes = build.space(f"h{index}", "permutation", width) if index < len(widths) - 2 else None
        build.linear(name, reads=last, writes=writes)
        last = writes
    symmetry = build.done()
    return state, symmetry, permutable(symmetry, set(state), rule="test")


def updates(states, counts=None):
    return [Update(f"s{k}", state, 10 if counts is None else counts[k]) for k, state in enumerate(states)]


def same(found, expected):
    return all(torch.allclose(found[name], tensor, **ROUNDED) for name, tensor in expected.items())


def tiny_resnet(norm):
    torch.manual_seed(0)
    model = timm.models.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 16, 16, 24), norm_layer=norm
    )
    model = model.double().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    return model


@pytest.mark.parametrize("widths", [(6, 5, 3), (10, 16, 16, 4), (3, 32, 32, 32, 32, 2)])
def test_a_shuffled_mlp_is_put_back_exactly(widths, shuffle):
    state, symmetry, group = plain_chain(*widths)

    fused = git_rebasin.fuse(
        updates([state, shuffle(state, group, 1)]), reference=state, symmetry=symmetry, config=CONFIG
    )

    assert same(fused.state, state)


def unanchored(seed):
    """A deep net with two inputs and two outputs: between them only other layers tell which unit is which."""
    state, _, group = plain_chain(2, 64, 64, 64, 64, 2)
    source = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in state.items()}, group


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_order_is_found_where_descent_from_the_identity_gets_stuck(seed, shuffle):
    # The known complaint of the reference implementation: planted permutations are not recovered.
    state, group = unanchored(seed)
    planted = traced(shuffle(state, group, seed), group)

    found = match_weights(state, planted, group, torch.Generator().manual_seed(seed))

    assert same({name: found[name] for name in state}, state)


def test_descent_from_the_identity_alone_misses_some_of_these(shuffle):
    missed = 0
    for seed in range(4):
        state, group = unanchored(seed)
        planted = traced(shuffle(state, group, seed), group)
        found = descend(state, planted, group, torch.Generator().manual_seed(seed), list(group.spaces))
        missed += not same({name: found[name] for name in state}, state)

    assert missed > 0


def test_a_shuffled_vit_is_put_back_with_its_heads_and_what_is_inside_them(small_vit, shuffle):
    state, symmetry, group = described(small_vit())
    moved = shuffle(state, group, 3)

    fused = git_rebasin.fuse(updates([state, moved]), reference=state, symmetry=symmetry, config=CONFIG)

    assert not same(moved, state)
    assert same(fused.state, state)
    assert fused.notes["blocks.0.mlp"].startswith("units moved of 128: s0 0, s1 1")


def test_permutations_of_a_vit_keep_its_function(small_vit, shuffle, outputs):
    model = small_vit(init_values=0.3)
    state, _, group = described(model)

    before, after = outputs(model, state), outputs(model, shuffle(state, group, 5))

    # Two float64 passes whose sums run in another order.
    assert (before - after).norm() <= 1e-12 * before.norm()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, timm.layers.GroupNorm], ids=["batchnorm", "groupnorm"])
def test_a_shuffled_resnet_is_put_back_through_its_shortcuts(norm, shuffle):
    model = tiny_resnet(norm if norm is nn.BatchNorm2d else lambda width, **_: norm(width, 4))
    state, symmetry, group = described(model, 32)
    copies = [shuffle(state, group, seed) for seed in (1, 2)]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        model.load_state_dict(copies[0])
        after = model(images)

    fused = git_rebasin.fuse(updates([state, *copies]), reference=state, symmetry=symmetry, config=CONFIG)

    assert (before - after).norm() <= 1e-12 * before.norm()
    assert same(fused.state, state)


def test_one_layer_is_matched_as_well_as_by_trying_every_order():
    state, _, group = plain_chain(4, 6, 3)
    other = {name: tensor + torch.randn_like(tensor) for name, tensor in plain_chain(4, 6, 3, seed=1)[0].items()}

    found = match_weights(state, traced(other, group), group, torch.Generator().manual_seed(0))

    tried = (move(other, group, {"h0": Move(torch.tensor(order))}) for order in permutations(range(6)))
    best = max(likeness(state, candidate, group) for candidate in tried)
    # The same inner product, summed in another order.
    assert likeness(state, found, group) == pytest.approx(best, rel=1e-12)


def test_every_descent_ends_no_further_away_than_it_began():
    state, _, group = plain_chain(5, 12, 12, 3)
    for seed in range(5):
        other = traced(plain_chain(5, 12, 12, 3, seed=seed + 1)[0], group)
        found = match_weights(state, other, group, torch.Generator().manual_seed(seed))
        assert likeness(state, found, group) >= likeness(state, other, group)


def test_a_layer_from_a_space_into_itself_does_not_lead_astray():
    torch.manual_seed(0)
    state = {"in.weight": torch.randn(8, 3), "loop.weight": torch.randn(8, 8)}
    build = Builder("loop", state)
    build.space("h", "permutation", 8)
    build.linear("in", writes="h")
    build.linear("loop", reads="h", writes="h")
    group = permutable(build.done(), set(state), rule="test")
    planted = traced(move(state, group, {"h": Move(torch.randperm(8))}), group)

    found = match_weights(state, planted, group, torch.Generator().manual_seed(0))

    assert same({name: found[name] for name in state}, state)


def test_drifted_models_are_averaged_plainly_bit_for_bit(small_vit):
    state, symmetry, _ = described(small_vit())
    drifted = [{n: t + 1e-3 * torch.randn_like(t) for n, t in state.items()} for _ in range(3)]
    sent = updates(drifted, [10, 20, 5])

    fused = git_rebasin.fuse(sent, reference=state, symmetry=symmetry, config=CONFIG)
    plain = average.fuse(sent, reference=state, config=CONFIG)

    assert all(torch.equal(fused.state[name], plain.state[name]) for name in state)
    assert fused.weights == plain.weights


@pytest.mark.parametrize("count", [3, 4])
def test_many_shuffled_copies_merge_into_the_common_model(count, shuffle):
    state, symmetry, group = plain_chain(6, 20, 20, 4)
    copies = [shuffle(state, group, seed) for seed in range(count)]

    fused = git_rebasin.fuse(updates(copies), reference=copies[0], symmetry=symmetry, config=CONFIG)

    assert same(fused.state, copies[0])


def test_a_space_that_is_only_partly_exchanged_stays_as_it_is():
    state, symmetry, _ = plain_chain(4, 6, 6, 3)
    sent = {name: tensor for name, tensor in state.items() if not name.startswith("0.")}

    fused = git_rebasin.fuse(updates([sent, sent]), reference=sent, symmetry=symmetry, config=CONFIG)

    assert fused.notes["h0"] == "left as it is: not all of its tensors are exchanged"
    assert fused.notes["h1"] == "units moved of 6: s0 0, s1 0"


def test_the_order_of_the_replies_does_not_matter(shuffle):
    state, symmetry, group = plain_chain(6, 10, 4)
    sent = updates([shuffle(state, group, seed) for seed in range(3)])

    runs = [git_rebasin.fuse(s, reference=state, symmetry=symmetry, config=CONFIG) for s in (sent, sent[::-1])]

    assert all(torch.equal(runs[0].state[name], runs[1].state[name]) for name in state)


@pytest.mark.parametrize("rule", [git_rebasin, git_rebasin_activations])
def test_an_architecture_that_is_not_described_is_refused(rule, reference, make_updates):
    with pytest.raises(ModelError, match=r"needs the architecture's symmetries but got none"):
        rule.fuse(make_updates(2), reference=reference, symmetry=None, config=CONFIG)


def test_spaces_are_visited_from_the_pixels_on():
    state, _, group = plain_chain(4, 6, 6, 3)

    visits = forward_order(group, state, arriving=True)

    assert [visit.space for visit in visits] == ["h0", "h1"]
    assert [{axis.tensor for axis in visit.axes} for visit in visits] == [
        {"0.weight", "0.bias"},
        {"2.weight", "2.bias"},
    ]


def test_a_stream_is_visited_again_when_its_branches_are_settled(small_vit):
    state, _, group = described(small_vit())

    visits = forward_order(group, state, arriving=True)

    names = ["stream", "blocks.0.heads", "blocks.0.mlp", "blocks.1.heads", "blocks.1.mlp"]
    assert [visit.space for visit in visits] == names * 2
    assert not any(axis.tensor == "blocks.0.mlp.fc2.weight" for axis in visits[0].axes)
    assert any(axis.tensor == "blocks.0.mlp.fc2.weight" for axis in visits[5].axes)


def test_activations_put_a_shuffled_vit_back(small_vit, shuffle):
    model = small_vit()
    state, symmetry, group = described(model)
    moved = shuffle(state, group, 4)
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = {
        site: cross_statistics(model, state, other, symmetry, images) for site, other in (("s0", state), ("s1", moved))
    }

    fused = git_rebasin_activations.fuse(
        updates([state, moved]), reference=state, symmetry=symmetry, config=CONFIG, statistics=statistics
    )

    assert same(fused.state, state)


def test_what_activations_do_not_show_is_matched_by_weights(small_vit, shuffle):
    model = small_vit()
    state, symmetry, group = described(model)
    moved = shuffle(state, group, 4)
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = cross_statistics(model, state, moved, symmetry, images)
    some = type(found)({key: moments for key, moments in found.moments.items() if key != "blocks.1.mlp"})

    fused = git_rebasin_activations.fuse(
        updates([moved]), reference=state, symmetry=symmetry, config=CONFIG, statistics={"s0": some}
    )

    # A lone update is returned as it is after matching: exactly the reference again.
    assert same(fused.state, state)


def test_a_site_without_statistics_is_named(small_vit):
    state, symmetry, _ = described(small_vit())

    with pytest.raises(UpdateError, match=r"site s0: no activation statistics came"):
        git_rebasin_activations.fuse(updates([state]), reference=state, symmetry=symmetry, config=CONFIG)
