"""Laws of matching and fusing that hold for any weights, group element and drift."""

import itertools

import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.fusion import Update, fuse
from popmi_core.matching import canonicalise, describe_model, match, random_element
from popmi_core.matching.elements import apply

SEEDS = st.integers(0, 2**31 - 1)
SHARES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])
FAMILIES = st.sampled_from(
    [{}, {"global_pool": "avg", "fc_norm": False}, {"qk_norm": True}, {"init_values": 0.3}, {"qkv_bias": False}]
)
# Each example makes and matches whole networks.
LAW = settings(max_examples=25, deadline=None)


def vit(seed, changes):
    """A model of two blocks with random weights, and its description."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
        model = timm.create_model("vit_tiny_patch16_224", **(shape | changes)).double().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, state, describe_model(model)


def noisy(state, share, seed):
    source = torch.Generator().manual_seed(seed)
    return {
        name: tensor
        + share * tensor.std(correction=0) * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
        for name, tensor in state.items()
    }


def outputs(model, state):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(images)


def assert_same_function(model, first, second):
    expected = outputs(model, first)
    # The issue asks for 1e-10 relative in float64.
    assert (outputs(model, second) - expected).norm() <= 1e-10 * expected.norm()


@LAW
@given(SEEDS, SEEDS, FAMILIES)
def test_every_group_element_keeps_the_function(seed, other, changes):
    model, state, symmetry = vit(seed, changes)

    moved = apply(state, symmetry, random_element(symmetry, torch.Generator().manual_seed(other)))

    assert_same_function(model, state, moved)


@LAW
@given(SEEDS, SEEDS, SHARES, FAMILIES)
def test_matching_keeps_the_function_of_the_candidate(seed, other, share, changes):
    model, state, symmetry = vit(seed, changes)
    generator = torch.Generator().manual_seed(other)
    candidate = apply(noisy(state, share, other), symmetry, random_element(symmetry, generator))

    assert_same_function(model, candidate, match(candidate, state, symmetry).state)


@LAW
@given(SEEDS, SEEDS, SHARES, FAMILIES)
def test_the_distance_never_rises_and_no_gain_is_negative(seed, other, share, changes):
    _, state, symmetry = vit(seed, changes)
    _, unrelated, _ = vit(other, changes)
    candidate = noisy(unrelated if share > 1 else state, share, other)

    found = match(candidate, state, symmetry)

    # Rounding of the squared length of all weights, about 1e3.
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found.distances))
    assert all(0 <= gain <= 1 for gain in found.gains.values())
    assert all(found.gains[layer] == 0 for layer, same in found.identity.items() if same and layer != "stream")


@LAW
@given(SEEDS, SEEDS, FAMILIES)
def test_a_moved_copy_is_brought_back(seed, other, changes):
    _, state, symmetry = vit(seed, changes)
    moved = apply(state, symmetry, random_element(symmetry, torch.Generator().manual_seed(other)))

    found = match(moved, state, symmetry)

    # In the folded spelling, up to the bases inside heads: compare everything outside of attention.
    back, aim = canonicalise(found.state, symmetry), canonicalise(state, symmetry)
    for name, tensor in aim.items():
        if ".attn." not in name:
            torch.testing.assert_close(back[name], tensor, rtol=1e-8, atol=1e-9)


@LAW
@given(SEEDS, SEEDS, SHARES)
def test_matching_twice_is_matching_once(seed, other, share):
    _, state, symmetry = vit(seed, {})
    _, unrelated, _ = vit(other, {})
    once = match(noisy(unrelated, share, other), state, symmetry, sweeps=50)

    twice = match(once.state, state, symmetry, sweeps=50)

    # Where a block still moves, it gains next to nothing.
    assert all(same or twice.gains[layer] < 0.06 for layer, same in twice.identity.items())


@LAW
@given(SEEDS, SEEDS, st.permutations(range(4)))
def test_fusing_does_not_depend_on_the_order_of_the_sites(seed, other, order):
    _, state, symmetry = vit(seed, {})
    updates = [Update(f"site_{k}", noisy(state, 0.3, other + k), 5 + k) for k in range(4)]

    one = fuse("circuit", updates, reference=state, symmetry=symmetry).state
    another = fuse("circuit", [updates[k] for k in order], reference=state, symmetry=symmetry).state

    assert all(torch.equal(one[name], another[name]) for name in state)


@LAW
@given(SEEDS, SEEDS, st.sampled_from([{}, {"init_values": 0.3}, {"qk_norm": True}]))
def test_the_circuit_average_of_one_function_is_that_function(seed, other, changes):
    """Copies in different bases inside their heads: the plain average of these is another model."""
    model, state, symmetry = vit(seed, changes)
    inside = symmetry.only("heads")
    updates = []
    for site in range(3):
        element = random_element(inside, torch.Generator().manual_seed(other + site))
        for move in element.moves.values():
            move.perm.copy_(torch.arange(2))
        updates.append(Update(f"site_{site}", apply(state, inside, element), 1))

    fused = fuse("circuit", updates, reference=state, symmetry=symmetry).state

    expected = outputs(model, state)
    # Singular vectors of nearly equal singular values cost digits, not the product they make.
    assert (outputs(model, fused) - expected).norm() <= 1e-9 * expected.norm()
