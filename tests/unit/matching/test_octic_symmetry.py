"""Octic transformers are matched by moves that commute with D4: whole fields, and bases of single irreducibles."""

import pytest
import timm
import torch

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import equivariance_error
from popmi_core.groups.octic import D4, act_on_slabs
from popmi_core.matching import apply, describe_model, match, random_element

# Float64 rounding through some dozen matrix products.
CLOSE = 1e-10


def micro(seed, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("popmi_octic_vit_micro", num_classes=5, **changes).double().eval()
        for parameter in model.parameters():
            # Biases start at zero, which would hide mistakes.
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def noise(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def outputs(model, state):
    with torch.inference_mode():
        return torch.func.functional_call(model, state, (noise(),))


def apart(found, expected):
    return float((found - expected).norm() / expected.norm())


def mean(first, second):
    return {name: (tensor + second[name]) / 2 for name, tensor in first.items()}


@pytest.mark.parametrize("changes", [{}, {"class_token": True, "global_pool": "token"}], ids=["average", "token"])
def test_a_planted_element_is_recovered_and_keeps_the_function(changes):
    model = micro(0, **changes)
    symmetry, reference = describe_model(model), clone(model)
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(1)))
    expected = outputs(model, reference)
    assert apart(outputs(model, moved), expected) < CLOSE
    # The premise: a copy in another basis averages to another model.
    assert apart(outputs(model, mean(reference, moved)), expected) > 0.1

    found = match(moved, reference, symmetry)

    assert min(found.gains.values()) > 1 - 1e-12
    assert apart(outputs(model, found.state), expected) < CLOSE
    assert apart(outputs(model, mean(reference, found.state)), expected) < CLOSE


def test_five_matched_models_average_to_an_exact_one():
    model = micro(0)
    symmetry, reference = describe_model(model), clone(model)
    matched = [match(clone(micro(seed)), reference, symmetry, sweeps=1).state for seed in range(1, 5)]
    fused = {name: torch.stack([reference[name], *(m[name] for m in matched)]).mean(0) for name in reference}
    for seed, state in enumerate(matched, start=1):
        other = micro(seed)
        assert apart(outputs(other, state), outputs(other, clone(other))) < CLOSE
    model.load_state_dict(fused)
    assert equivariance_error(model, noise(), D4) <= CLOSE


def test_what_is_described():
    found = describe_model(micro(0))
    assert found.family == "OcticVit.describe_symmetry"
    kinds = {name: (space.kind, space.size, space.inner) for name, space in found.spaces.items()}
    assert kinds == {
        "stream": ("orthogonal", 4, 1),
        "blocks.0.heads": ("heads", 2, 2),
        "blocks.0.mlp": ("permutation", 16, 1),
        "blocks.1.heads": ("heads", 2, 2),
        "blocks.1.mlp": ("permutation", 16, 1),
        "readout": ("permutation", 16, 1),
    }


def test_moving_one_irreducible_of_the_hidden_fields_alone_changes_the_function():
    model = micro(0)
    state, order = clone(model), torch.arange(16).roll(1)
    state["blocks.0.mlp.fc1.a2"] = state["blocks.0.mlp.fc1.a2"][order]
    state["blocks.0.mlp.fc2.a2"] = state["blocks.0.mlp.fc2.a2"][:, order]
    # GELU sees the field as a whole; without it, this would be a symmetry.
    assert apart(outputs(model, state), outputs(model, clone(model))) > 1e-3


def test_of_dense_weights_only_orders_of_whole_fields_keep_the_mean_equivariant():
    layer = micro(0).blocks[0].mlp.fc1
    lines = [getattr(layer, name).detach() for name in ("a1", "a2", "b1", "b2")]
    dense = torch.block_diag(*lines, layer.e.detach(), layer.e.detach())  # hidden slabs x stream slabs
    generator = torch.Generator().manual_seed(0)
    fields = torch.randperm(16, generator=generator)
    whole = (torch.arange(8)[:, None] * 16 + fields).flatten()
    free = torch.randperm(128, generator=generator)

    def unequal(weight):
        stream = torch.eye(32, dtype=torch.float64)
        moved = [act_on_slabs(g, stream @ weight.T) - act_on_slabs(g, stream) @ weight.T for g in D4.elements]
        return max(float(difference.norm() / weight.norm()) for difference in moved)

    assert unequal((dense + dense[whole]) / 2) < CLOSE
    assert unequal((dense + dense[free]) / 2) > 0.1
