"""A ViT moved by a random element of its group is put back, and computes the same on the way."""

import pytest
import torch

from popmi_core.matching import describe_model, match, random_element
from popmi_core.matching.elements import apply

FAMILIES = [
    {},
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg"},
    {"qk_norm": True},
    {"qkv_bias": False},
]
# Float64 rounding through some dozen matrix products.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def noisy(state, noise, generator):
    """Add noise of this share of every tensor's own scale."""
    return {
        name: tensor
        + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in state.items()
    }


def midpoint(first, second):
    return {name: (first[name] + second[name]) / 2 for name in first}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_without_noise_every_layer_is_recovered_and_the_midpoint_is_the_model(small_vit, outputs, changes, seed):
    model = small_vit(seed=seed, **changes)
    symmetry, reference = describe_model(model), clone(model)
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(seed)))

    found = match(moved, reference, symmetry)

    # The distance left is rounding, a share of 1e-12 of what was there.
    assert min(found.gains.values()) > 1 - 1e-12
    expected = outputs(model, reference)
    torch.testing.assert_close(outputs(model, found.state), expected, **CLOSE)
    torch.testing.assert_close(outputs(model, midpoint(reference, found.state)), expected, **CLOSE)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("noise", "angle"), [(0.0, 1e-10), (0.3, 0.1), (1.0, 0.35)])
def test_heads_units_and_stream_are_recovered_under_noise(small_vit, outputs, noise, angle, seed):
    """Noise as large as the weights included: every permutation exactly, the rotation up to what noise leaves of it."""
    model = small_vit(seed=seed)
    symmetry, reference = describe_model(model), clone(model)
    generator = torch.Generator().manual_seed(seed)
    planted = random_element(symmetry, generator)
    moved = apply(noisy(reference, noise, generator), symmetry, planted)

    found = match(moved, reference, symmetry)

    torch.testing.assert_close(outputs(model, found.state), outputs(model, moved), **CLOSE)
    for name, move in planted.moves.items():
        if move.perm is not None:
            # Where two heads were drawn in their own order, nothing is to be permuted.
            undone = found.element.moves[name].perm
            assert torch.equal(move.perm if undone is None else move.perm[undone], torch.arange(len(move.perm)))
    # Root mean square angle (radians) between the planted rotation undone and none at all.
    left = found.element.moves["stream"].rotation @ planted.moves["stream"].rotation - torch.eye(32)
    assert float(left.norm()) / 32**0.5 < angle
    assert min(found.gains.values()) > 0.5


def test_a_planted_pair_averages_to_noise_unless_it_is_aligned(small_vit, outputs):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(0)))

    expected = outputs(model, reference)
    plain = (outputs(model, midpoint(reference, moved)) - expected).norm() / expected.norm()

    # What matching is for: without it the midpoint of two copies of one model is another model.
    assert plain > 0.3


def test_layer_scale_is_recovered_up_to_the_entries_near_zero(small_vit, outputs):
    model = small_vit(init_values=0.5)
    symmetry, reference = describe_model(model), clone(model)
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(0)))

    found = match(moved, reference, symmetry)

    assert min(found.gains.values()) > 1 - 1e-12
    torch.testing.assert_close(outputs(model, found.state), outputs(model, reference), **CLOSE)
    assert torch.equal(found.state["blocks.0.ls1.gamma"], reference["blocks.0.ls1.gamma"])


def test_float32_models_come_back_in_float32(small_vit):
    model = small_vit().float()
    symmetry, reference = describe_model(model), clone(model)
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(0)))

    found = match(moved, reference, symmetry)

    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    # Limited by the seven digits of the weights, squared.
    assert min(found.gains.values()) > 1 - 1e-9
