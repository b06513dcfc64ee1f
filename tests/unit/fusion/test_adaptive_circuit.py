"""Heads near the reference are averaged as weights, heads that moved far as what they compute."""

import pytest
import timm
import torch

from popmi_core.fusion import Update, fuse
from popmi_core.fusion.adaptive_circuit import NEAR
from popmi_core.matching import apply, canonicalise, describe_model, random_element

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


def windowed(name):
    torch.manual_seed(0)
    shape = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    model = timm.create_model(name, num_classes=3, **shape).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=["vit", *WINDOWED])
def model(request, small_vit):
    return small_vit() if request.param == "vit" else windowed(request.param)


def fused_by(rule, updates, reference, symmetry):
    return fuse(rule, updates, reference=reference, symmetry=symmetry)


def equal(one, other):
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_near_the_reference_it_is_the_plain_average_bit_for_bit(model):
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drifted(reference, 0.2, seed) for seed in range(3)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)

    assert equal(found.state, fused_by("average", updates, reference, symmetry).state)
    assert set(found.notes.values()) == {"plain average: near the reference"}


def test_far_from_the_reference_it_is_circuit_averaging_bit_for_bit(model):
    symmetry, reference = describe_model(model), clone(model)
    updates = updates_of([drifted(reference, 0.6, seed) for seed in range(3)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)

    expected = fused_by("circuit", updates, reference, symmetry)
    assert equal(found.state, expected.state)
    assert found.notes == expected.notes


def test_each_head_is_judged_by_itself(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    near, far = (drifted(reference, share, 1) for share in (0.1, 0.8))
    name, rows = "blocks.0.attn.qkv.weight", slice(INNER, 2 * INNER)
    mixed = {key: tensor.clone() for key, tensor in near.items()}
    # The second head's query and key are those of the far model.
    for block in (0, 1):
        mixed[name].reshape(3, -1, DIM)[block, rows] = far[name].reshape(3, -1, DIM)[block, rows]
    updates = updates_of([mixed, drifted(reference, 0.1, 2)])

    found = fused_by("adaptive_circuit", updates, reference, symmetry)
    plain, circuit = (fused_by(rule, updates, reference, symmetry).state for rule in ("average", "circuit"))

    got, weights, products = (
        canonicalise(state, symmetry)[name].reshape(3, HEADS, INNER, DIM) for state in (found.state, plain, circuit)
    )
    # Norms are folded into rows; averages of folded and of bare rows differ by the norms' own drift.
    torch.testing.assert_close(got[:2, 1], products[:2, 1], **CLOSE)
    assert (got[:2, 0] - weights[:2, 0]).norm() < 0.1 * (got[:2, 0] - products[:2, 0]).norm()
    assert "query_key kept" in found.notes["blocks.0.heads"]
    assert "1 of 2 heads plain, value plain (near the reference)" in found.notes["blocks.0.heads"]
    assert found.notes["blocks.1.heads"] == "plain average: near the reference"


def test_another_basis_inside_one_sites_heads_is_far(small_vit, outputs):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drifted(reference, 0.1, seed) for seed in range(3)]
    element = random_element(symmetry.only("heads"), torch.Generator().manual_seed(1))
    for move in element.moves.values():
        move.perm.copy_(torch.arange(HEADS))
    regauged = updates_of([apply(states[0], symmetry, element), *states[1:]])

    found = fused_by("adaptive_circuit", regauged, reference, symmetry).state

    expected = fused_by("circuit", updates_of(states), reference, symmetry).state
    torch.testing.assert_close(outputs(model, found), outputs(model, expected), **CLOSE)


def test_one_site_far_away_is_enough_unless_it_has_no_examples(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    states = [drifted(reference, 0.1, 0), drifted(reference, 0.1, 1), drifted(reference, 2 * NEAR, 2)]

    counted = fused_by("adaptive_circuit", updates_of(states, (1000, 1000, 1)), reference, symmetry)
    empty = fused_by("adaptive_circuit", updates_of(states, (1000, 1000, 0)), reference, symmetry)

    assert "kept" in counted.notes["blocks.0.heads"]
    assert set(empty.notes.values()) == {"plain average: near the reference"}
