"""Folding changes the spelling of a model, never what it computes."""

import pytest
import torch

from popmi_core.matching import canonicalise, describe_model
from popmi_core.matching.canonical import spell_like
from popmi_core.matching.steps import gauge

FAMILIES = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": False},
    {"init_values": 0.3},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"reg_tokens": 2},
]
# Two float64 forward passes through equal functions in different spellings: rounding, far below 1e-10.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_the_folded_model_computes_the_same(small_vit, outputs, changes):
    model = small_vit(**changes)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    folded = canonicalise(state, describe_model(model))

    torch.testing.assert_close(outputs(model, folded), outputs(model, state), **CLOSE)


def test_gamma_beta_layer_scale_key_and_value_bias_are_gone(small_vit):
    model = small_vit(init_values=0.3)
    state = model.state_dict()

    folded = canonicalise(state, describe_model(model))

    for name, tensor in folded.items():
        if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        if "norm" in name and name.endswith("bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        if name.endswith("qkv.bias"):
            assert torch.equal(tensor[32:], torch.zeros(64, dtype=torch.float64)), name


def test_under_qk_norm_the_key_bias_stays(small_vit):
    model = small_vit(qk_norm=True)
    state = model.state_dict()

    folded = canonicalise(state, describe_model(model))

    assert folded["blocks.0.attn.qkv.bias"][32:64].abs().min() > 0
    assert torch.equal(folded["blocks.0.attn.q_norm.weight"], state["blocks.0.attn.q_norm.weight"])


def test_folding_twice_is_folding_once(small_vit):
    model = small_vit()
    state = model.state_dict()
    symmetry = describe_model(model)
    once = canonicalise(state, symmetry)

    twice = canonicalise(once, symmetry)

    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_the_argument_is_not_changed(small_vit):
    model = small_vit()
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}

    canonicalise(state, describe_model(model))

    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_a_model_can_be_spelled_with_the_norms_of_another(small_vit, outputs, changes):
    model, other = small_vit(**changes), small_vit(seed=1, **changes).state_dict()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetry = describe_model(model)

    spelled = spell_like(canonicalise(state, symmetry), other, symmetry)

    torch.testing.assert_close(outputs(model, spelled), outputs(model, state), **CLOSE)
    if changes != {"qkv_bias": False}:
        assert torch.equal(spelled["blocks.0.norm1.weight"], other["blocks.0.norm1.weight"])


def test_a_gamma_of_zero_is_never_divided_by(small_vit, outputs):
    model, other = small_vit(init_values=0.3), small_vit(seed=1, init_values=0.3).state_dict()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other["blocks.0.norm1.weight"][3] = 0
    other["blocks.1.ls2.gamma"].zero_()
    symmetry = describe_model(model)

    spelled = spell_like(canonicalise(state, symmetry), other, symmetry)

    torch.testing.assert_close(outputs(model, spelled), outputs(model, state), **CLOSE)


def test_a_gauge_stays_away_from_zero_and_keeps_its_signs():
    found = gauge(torch.tensor([1.0, -1.0, 0.0, -1e-9]))

    # A tenth of the mean size 0.5.
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.05, -0.05], dtype=torch.float64))


def test_a_gauge_of_zeros_is_ones():
    assert torch.equal(gauge(torch.zeros(3)), torch.ones(3, dtype=torch.float64))
