"""Heads are averaged as weights where that makes what they compute on average, else as what they compute."""

import math

import pytest
import torch

from popmi_core.adapters.lora import add_lora
from popmi_core.fusion import Update, fuse
from popmi_core.matching import apply, canonicalise, describe_model, random_element
from popmi_core.matching.elements import Element, Move

HEADS, INNER, DIM = 2, 16, 32
# Float64 forward passes through equal functions; singular values of well-separated products.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
WINDOWED = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def drifted(state, share, seed):
    """Noise of this share of every tensor's own size, so that every factor moves by about that share."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: tensor
        + share * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
        for name, tensor in state.items()
    }


def updates_of(states, counts=None):
    pairs = zip(states, counts or range(10, 10 + len(states)), strict=True)
    return [Update(f"site_{index}", state, count) for index, (state, count) in enumerate(pairs)]


@pytest.fixture(params=["vit", *WINDOWED])
def model(request, small_vit, windowed):
    return small_vit() if request.param == "vit" else windowed(request.param)


def fused_by(rule, updates, reference, symmetry):
    return fuse(rule, updates, reference=reference, symmetry=symmetry)


def equal(one, other):
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_little_drift_makes_it_the_plain_average_bit_for_bit(model):
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drifted(reference, 0.02, seed) for seed in range(3)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)

    assert equal(found.state, fused_by("average", updates, reference, symmetry).state)
    assert set(found.notes.values()) == {"plain average: the sites agree on its heads"}


def test_much_drift_makes_it_circuit_averaging_bit_for_bit(model):
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drifted(reference, 0.8, seed) for seed in range(3)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)

    expected = fused_by("circuit", updates, reference, symmetry)
    assert equal(found.state, expected.state)
    assert found.notes == expected.notes


def folded(state, symmetry):
    return canonicalise(state, symmetry)["blocks.0.attn.qkv.weight"].reshape(3, HEADS, INNER, DIM)


def test_each_head_is_judged_by_itself(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    near, far = (drifted(reference, share, 1) for share in (0.02, 1.0))
    # The second head's queries and keys are those of the far model.
    mixed, name = dict(near), "blocks.0.attn.qkv.weight"
    mixed[name] = near[name].clone()
    mixed[name].reshape(3, HEADS, INNER, DIM)[:2, 1] = far[name].reshape(3, HEADS, INNER, DIM)[:2, 1]
    updates = updates_of([mixed, drifted(reference, 0.02, 2)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)

    plain, circuit = (fused_by(rule, updates, reference, symmetry).state for rule in ("average", "circuit"))
    torch.testing.assert_close(folded(found.state, symmetry)[:2, 0], folded(plain, symmetry)[:2, 0], **CLOSE)
    torch.testing.assert_close(folded(found.state, symmetry)[:2, 1], folded(circuit, symmetry)[:2, 1], **CLOSE)
    assert found.notes["blocks.0.heads"].startswith("circuit average: query_key kept")
    assert ", 1 of 2 heads plain, value kept" in found.notes["blocks.0.heads"]
    assert found.notes["blocks.1.heads"] == "plain average: the sites agree on its heads"


def turned_inside(symmetry, degrees):
    """Rotate every basis inside the heads of a space by an angle in pairs of directions."""
    angle = math.radians(degrees)
    block = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    moves = {}
    for name, space in symmetry.only("heads").spaces.items():
        turn = torch.block_diag(*[block] * (space.inner // 2)).expand(space.size, -1, -1).clone()
        moves[name] = Move(maps=dict.fromkeys(space.maps, turn))
    return Element(moves)


@pytest.mark.parametrize("degrees", [1, 5, 10, 19, 60])
def test_turned_bases_inside_heads_cost_nothing_however_small_the_angle(small_vit, outputs, degrees):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    turned = [apply(reference, symmetry, turned_inside(symmetry, sign * degrees)) for sign in (1, -1)]

    found = fused_by("adaptive_circuit", updates_of(turned), reference, symmetry).state

    torch.testing.assert_close(outputs(model, found), outputs(model, reference), **CLOSE)
    plain = fused_by("average", updates_of(turned), reference, symmetry).state
    # What is not noticed costs the square of the angle.
    assert (outputs(model, plain) - outputs(model, reference)).norm() > 1e-5 * outputs(model, reference).norm()


def test_the_verdict_does_not_depend_on_how_all_sites_spell_their_heads(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drifted(reference, share, seed) for seed, share in enumerate((0.05, 0.5))]
    element = random_element(symmetry.only("heads"), torch.Generator().manual_seed(0))
    other = [apply(state, symmetry, element, like=reference) for state in states]

    notes = [
        fused_by("adaptive_circuit", updates_of(given), start, symmetry).notes
        for given, start in ((states, reference), (other, apply(reference, symmetry, element)))
    ]

    # Some heads stay and some do not, and the rank keeps the same share.
    assert notes[0] == notes[1]
    assert any("1 of 2 heads plain" in note for note in notes[0].values())


def test_a_site_with_hardly_any_examples_decides_nothing(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drifted(reference, 0.02, 0), drifted(reference, 0.02, 1), drifted(reference, 1.5, 2)]

    one, equal_shares = (
        fused_by("adaptive_circuit", updates_of(states, counts), reference, symmetry)
        for counts in ((10_000, 10_000, 1), (10, 10, 10))
    )

    assert set(one.notes.values()) == {"plain average: the sites agree on its heads"}
    assert all("kept" in note for note in equal_shares.notes.values())


def test_low_rank_adapters_are_averaged_as_products_from_the_first_round(small_vit):
    model = add_lora(small_vit(), ("mlp.fc1",), rank=3)
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drifted(reference, 0.02, seed) for seed in range(3)])
    for update in updates:
        # B begins at zero, where a share of its own size is nothing.
        update.state["blocks.0.mlp.fc1.lora_B.weight"] += 0.01 * torch.rand_like(
            update.state["blocks.0.mlp.fc1.lora_B.weight"]
        )

    found, products = (fused_by(rule, updates, reference, symmetry) for rule in ("adaptive_circuit", "lowrank"))

    layer = "blocks.0.mlp.fc1"
    made = [s[f"{layer}.lora_B.weight"] @ s[f"{layer}.lora_A.weight"] for s in (found.state, products.state)]
    torch.testing.assert_close(*made, **CLOSE)
    assert "kept" in found.notes[f"{layer}.lora"]
