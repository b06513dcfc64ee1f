"""Heads are averaged as what they compute: bases inside a head cannot matter."""

from dataclasses import replace

import pytest
import torch

from popmi_core.fusion import Update, circuit, fuse
from popmi_core.matching import Builder, apply, canonicalise, describe_model, random_element
from popmi_core.matching.elements import Element
from popmi_core.matching.steps import NormFold

FAMILIES = [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}, {"global_pool": "avg", "fc_norm": False}]
# Attention with a table of positions, and cosine attention whose heads may only be rotated.
WINDOWED = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]
# Float64 forward passes through equal functions; singular values of well-separated products.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def drift(state, share, seed):
    source = torch.Generator().manual_seed(seed)
    return {
        name: tensor + share * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
        for name, tensor in state.items()
    }


def updates_of(states):
    return [Update(f"site_{index}", state, 10 + index) for index, state in enumerate(states)]


def inside_heads(symmetry, seed):
    """A random basis inside every head, in the heads' own order: the order is for matching."""
    element = random_element(symmetry.only("heads"), torch.Generator().manual_seed(seed))
    return Element({name: replace(move, perm=None) for name, move in element.moves.items()})


def products(state, symmetry, index):
    """``[W_q b_q]^T W_k`` and ``W_v^T W_o^T`` of every head, computed here from the folded weights."""
    folded = canonicalise(state, symmetry)
    query, key, value = folded[f"blocks.{index}.attn.qkv.weight"].reshape(3, 2, 16, 32)
    bias = folded[f"blocks.{index}.attn.qkv.bias"].reshape(3, 2, 16, 1)[0]
    output = folded[f"blocks.{index}.attn.proj.weight"].reshape(32, 2, 16).permute(1, 2, 0)
    return torch.cat([query, bias], dim=2).mT @ key, value.mT @ output


def best_of_rank(product, rank):
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    return left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_identical_models_fuse_to_the_same_function(small_vit, outputs, changes):
    model = small_vit(**changes)
    reference = clone(model)

    fused = fuse("circuit", updates_of([reference] * 3), reference=reference, symmetry=describe_model(model)).state

    torch.testing.assert_close(outputs(model, fused), outputs(model, reference), **CLOSE)


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_another_basis_inside_one_sites_heads_changes_nothing(small_vit, outputs, changes):
    model = small_vit(**changes)
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, 0.05, seed) for seed in range(3)]
    regauged = [apply(states[0], symmetry, inside_heads(symmetry, 1)), *states[1:]]

    one = fuse("circuit", updates_of(states), reference=reference, symmetry=symmetry).state
    other = fuse("circuit", updates_of(regauged), reference=reference, symmetry=symmetry).state
    plain = fuse("average", updates_of(regauged), reference=reference, symmetry=symmetry).state

    torch.testing.assert_close(outputs(model, other), outputs(model, one), **CLOSE)
    assert (outputs(model, plain) - outputs(model, one)).norm() > 0.05 * outputs(model, one).norm()


@pytest.mark.parametrize("name", WINDOWED)
def test_windowed_attention_is_averaged_as_what_it_computes(outputs, windowed, name):
    model = windowed(name)
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, 0.05, seed) for seed in range(2)]
    regauged = [apply(states[0], symmetry, inside_heads(symmetry, 1)), states[1]]

    same = fuse("circuit", updates_of([reference] * 2), reference=reference, symmetry=symmetry)
    one = fuse("circuit", updates_of(states), reference=reference, symmetry=symmetry)
    other = fuse("circuit", updates_of(regauged), reference=reference, symmetry=symmetry)

    torch.testing.assert_close(outputs(model, same.state), outputs(model, reference), **CLOSE)
    torch.testing.assert_close(outputs(model, other.state), outputs(model, one.state), **CLOSE)
    how = "turned to the reference" if name.startswith("swinv2") else "kept"
    assert f"query_key {how}" in one.notes["layers.0.blocks.0.heads"]


def test_the_product_is_the_best_of_its_rank_for_the_mean_product(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, 0.1, seed) for seed in range(3)]
    updates = updates_of(states)

    fused = fuse("circuit", updates, reference=reference, symmetry=symmetry)

    for index in range(2):
        for side in range(2):
            mean = sum(fused.weights[u.site] * products(u.state, symmetry, index)[side] for u in updates)
            torch.testing.assert_close(products(fused.state, symmetry, index)[side], best_of_rank(mean, 16), **CLOSE)


def test_everything_but_the_heads_is_the_plain_average(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drift(reference, 0.1, seed) for seed in range(3)])

    circuit = fuse("circuit", updates, reference=reference, symmetry=symmetry).state
    plain = fuse("average", updates, reference=reference).state

    for name in reference:
        if ".attn." not in name:
            # Norms go through a division and a multiplication by the same number.
            torch.testing.assert_close(circuit[name], plain[name], rtol=1e-12, atol=0)


def test_the_factors_stay_near_the_references_so_that_rounds_do_not_drift(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    start = fuse("circuit", updates_of([reference] * 2), reference=reference, symmetry=symmetry).state

    nearby = fuse("circuit", updates_of([drift(start, 1e-4, s) for s in range(3)]), reference=start, symmetry=symmetry)

    for name in start:
        # Of the order of the drift itself: signs and order of singular vectors follow the reference.
        assert (nearby.state[name] - start[name]).abs().max() < 1e-3, name


def test_equal_models_give_back_their_very_factors(small_vit):
    """Whatever the balance inside heads: a jump to other factors would be a step that no site has made."""
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    lopsided = apply(reference, symmetry, random_element(symmetry.only("heads"), torch.Generator().manual_seed(0)))

    fused = fuse("circuit", updates_of([lopsided] * 3), reference=lopsided, symmetry=symmetry).state

    for name in ("blocks.0.attn.qkv.weight", "blocks.1.attn.proj.weight"):
        # Two basis changes in float64, of condition at most 1e3.
        torch.testing.assert_close(fused[name], lopsided[name], rtol=1e-8, atol=1e-9)


def test_how_much_of_the_mean_the_rank_keeps_is_noted(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)

    notes = fuse("circuit", updates_of([reference] * 2), reference=reference, symmetry=symmetry).notes

    assert notes == {
        f"blocks.{index}.heads": "circuit average: query_key kept 100.0%, value kept 100.0%" for index in range(2)
    }


def test_a_layer_that_is_not_known_is_averaged_plainly_and_said(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    smaller = symmetry.without({"blocks.1.heads"}, reason="tested")
    updates = updates_of([drift(reference, 0.1, seed) for seed in range(3)])

    fused = fuse("circuit", updates, reference=reference, symmetry=smaller)

    plain = fuse("average", updates, reference=reference).state
    assert torch.equal(fused.state["blocks.1.attn.qkv.weight"], plain["blocks.1.attn.qkv.weight"])
    assert list(fused.notes) == ["blocks.0.heads"]


def test_an_unknown_architecture_is_averaged_plainly_and_said(reference, make_updates):
    fused = fuse("circuit", make_updates(3), reference=reference, symmetry=None)

    plain = fuse("average", make_updates(3), reference=reference)
    assert all(torch.equal(fused.state[name], plain.state[name]) for name in reference)
    assert fused.notes == {"all": "plain average: architecture not known yet"}


def test_updates_of_an_adapter_only_are_averaged_plainly(small_vit):
    model = small_vit()
    head = {name: tensor for name, tensor in clone(model).items() if name.startswith("head")}

    fused = fuse("circuit", updates_of([head, head]), reference=head, symmetry=describe_model(model))

    assert fused.notes == {"all": "plain average: no head with known symmetry was exchanged"}


def test_attention_is_averaged_where_only_attention_is_exchanged(small_vit):
    """Norms that stay at the sites cannot be folded, and need not be."""
    model = small_vit(qkv_bias=False)
    symmetry = describe_model(model)
    reference = {name: tensor for name, tensor in clone(model).items() if ".attn." in name}
    states = [drift(reference, 0.1, seed) for seed in range(2)]

    fused = fuse("circuit", updates_of(states), reference=reference, symmetry=symmetry)

    parts = [s["blocks.0.attn.qkv.weight"].reshape(3, 2, 16, 32) for s in (*states, fused.state)]
    scores = [query.mT @ key for query, key, _ in parts]
    best = best_of_rank(fused.weights["site_0"] * scores[0] + fused.weights["site_1"] * scores[1], 16)
    torch.testing.assert_close(scores[2], best, **CLOSE)


def test_large_models_are_averaged_in_float32_and_stay_close(small_vit, outputs, monkeypatch):
    model = small_vit().float()
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drift(reference, 0.05, seed) for seed in range(3)])
    exact = fuse("circuit", updates, reference=reference, symmetry=symmetry).state
    monkeypatch.setattr(circuit, "_LARGE", 0)

    found = fuse("circuit", updates, reference=reference, symmetry=symmetry).state

    # Float32 rounding, and singular vectors of values that lie close together.
    expected = outputs(model.double(), {name: tensor.double() for name, tensor in exact.items()})
    got = outputs(model, {name: tensor.double() for name, tensor in found.items()})
    assert (got - expected).norm() <= 1e-4 * expected.norm()


def hand_made():
    """Two products behind one norm, as in blocks with parallel attentions, and an adapter on the second."""
    source = torch.Generator().manual_seed(0)
    state = {f"{name}.weight": torch.randn(3, 4, generator=source).double() for name in ("a.q", "a.k", "b.q", "b.k")}
    state |= {"norm.weight": 1 + 0.5 * torch.rand(4, generator=source).double()}
    build = Builder("by hand", state)
    for name in ("a", "b"):
        build.space(name, "heads", 1, inner=3, maps={"factor": "linear"})
        build.axis(f"{name}.q.weight", 0, name, part="factor")
        build.axis(f"{name}.k.weight", 0, name, part="factor", dual=True)
    build.step(NormFold("norm", ("a.q", "a.k", "b.q", "b.k")))
    return state, build


def test_two_products_behind_one_norm_are_averaged_together():
    reference, build = hand_made()
    states = [drift(reference, 0.1, seed) for seed in range(3)]

    fused = fuse("circuit", updates_of(states), reference=reference, symmetry=build.done())

    for name in ("a", "b"):
        folded = [
            (s[f"{name}.q.weight"] * s["norm.weight"]).T @ (s[f"{name}.k.weight"] * s["norm.weight"])
            for s in (*states, fused.state)
        ]
        mean = sum(weight * one for weight, one in zip(fused.weights.values(), folded, strict=False))
        torch.testing.assert_close(folded[3], best_of_rank(mean, 3), **CLOSE)


def test_of_two_spaces_that_share_a_tensor_the_adapter_is_averaged_as_a_product():
    reference, build = hand_made()
    build.space("other", "heads", 1, inner=4, maps={"value": "linear"})
    build.axis("b.q.weight", 1, "other", part="value")
    build.axis("b.k.weight", 1, "other", part="value", dual=True)
    states = [drift(reference, 0.1, seed) for seed in range(2)]

    notes = fuse("circuit", updates_of(states), reference=reference, symmetry=build.done()).notes

    assert list(notes) == ["a", "b", "other"]
    assert notes["other"] == "plain average: a low-rank adapter is on its layers"


def test_a_lone_vit_is_returned_bit_for_bit(small_vit):
    model = small_vit()
    state = clone(model)

    fused = fuse("circuit", updates_of([state]), reference=state, symmetry=describe_model(model))

    assert all(torch.equal(fused.state[name], tensor) for name, tensor in state.items())
    assert fused.notes == {"all": "one site only: its model as it is"}


def test_the_order_of_the_replies_does_not_change_a_bit(small_vit):
    model = small_vit().float()
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drift(reference, 0.1, seed) for seed in range(5)])

    one = fuse("circuit", updates, reference=reference, symmetry=symmetry).state
    other = fuse("circuit", updates[::-1], reference=reference, symmetry=symmetry).state

    assert all(torch.equal(one[name], other[name]) for name in reference)
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
