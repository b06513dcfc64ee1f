"""Heads are averaged as what they compute: bases inside a head cannot matter."""

import pytest
import torch

from popmi_core.fusion import Update, fuse
from popmi_core.matching import canonicalise, describe_model, random_element
from popmi_core.matching.elements import apply
from popmi_core.matching.factors import head_factors

FAMILIES = [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}, {"global_pool": "avg", "fc_norm": False}]
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


def products(state, symmetry, index):
    """``[W_q b_q]^T W_k`` and ``W_v^T W_o^T`` of every head, computed here from the folded weights."""
    folded = canonicalise(state, symmetry.heads_only())
    query, key, value = folded[f"blocks.{index}.attn.qkv.weight"].reshape(3, 2, 16, 32)
    bias = folded[f"blocks.{index}.attn.qkv.bias"].reshape(3, 2, 16, 1)[0]
    output = folded[f"blocks.{index}.attn.proj.weight"].reshape(32, 2, 16).permute(1, 2, 0)
    return torch.cat([query, bias], dim=2).mT @ key, value.mT @ output


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
    element = random_element(symmetry.heads_only(), torch.Generator().manual_seed(1))
    for move in element.heads.values():
        # The order of heads is for matching; the basis inside them is not.
        move.perm.copy_(torch.arange(2))
    regauged = [apply(states[0], symmetry, element), *states[1:]]

    one = fuse("circuit", updates_of(states), reference=reference, symmetry=symmetry).state
    other = fuse("circuit", updates_of(regauged), reference=reference, symmetry=symmetry).state
    plain = fuse("average", updates_of(regauged), reference=reference, symmetry=symmetry).state

    torch.testing.assert_close(outputs(model, other), outputs(model, one), **CLOSE)
    assert (outputs(model, plain) - outputs(model, one)).norm() > 0.05 * outputs(model, one).norm()


def test_the_product_is_the_best_of_its_rank_for_the_mean_product(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, 0.1, seed) for seed in range(3)]
    updates = updates_of(states)

    fused = fuse("circuit", updates, reference=reference, symmetry=symmetry)

    for index in range(2):
        for side in range(2):
            mean = sum(fused.weights[u.site] * products(u.state, symmetry, index)[side] for u in updates)
            left, values, right = torch.linalg.svd(mean, full_matrices=False)
            best = left[..., :16] * values[:, None, :16] @ right[:, :16]
            torch.testing.assert_close(products(fused.state, symmetry, index)[side], best, **CLOSE)


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


def test_the_fused_factors_are_balanced(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    fused = fuse(
        "circuit", updates_of([drift(reference, 0.1, s) for s in range(3)]), reference=reference, symmetry=symmetry
    )

    folded = canonicalise(fused.state, symmetry.heads_only())
    rows = head_factors(folded, symmetry.heads[0], 2)

    for part, tail in ((rows.query_key, 33), (rows.value, 32)):
        key, query = part[..., :32], part[..., 32 : 32 + tail]
        torch.testing.assert_close(query @ query.mT, key @ key.mT, **CLOSE)


def test_how_much_of_the_mean_the_rank_keeps_is_noted(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)

    notes = fuse("circuit", updates_of([reference] * 2), reference=reference, symmetry=symmetry).notes

    assert notes == {
        f"blocks.{index}.heads": "circuit average, kept 100.0% of QK and 100.0% of VO" for index in range(2)
    }


def test_a_layer_that_is_not_known_is_averaged_plainly_and_said(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    smaller = symmetry.without_layers(heads=[1], hidden=[], reason="tested")
    updates = updates_of([drift(reference, 0.1, seed) for seed in range(3)])

    fused = fuse("circuit", updates, reference=reference, symmetry=smaller)

    plain = fuse("average", updates, reference=reference).state
    assert torch.equal(fused.state["blocks.1.attn.qkv.weight"], plain["blocks.1.attn.qkv.weight"])
    assert fused.notes["blocks.1.heads"] == "plain average: heads not known"


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
