"""Networks on the group and methods over an orbit: OPM knows what may move, and what comes of it is invariant."""

import copy
from dataclasses import replace

import pytest
import timm
import torch

import popmi_core.invariance.registered  # noqa: F401  (registers the networks)
from popmi_core.adapters import equivariance_error
from popmi_core.errors import ModelError
from popmi_core.fusion import Update, fuse
from popmi_core.groups import point_group
from popmi_core.invariance.catalogue import method
from popmi_core.invariance.method import MethodContext
from popmi_core.matching import apply, describe_model, random_element, verify_symmetry

NETWORKS = {
    "popmi_p4_cnn": ({"width": 3}, "C4"),
    "popmi_p4m_cnn": ({"width": 2}, "D4"),
    "popmi_z2_cnn": ({"width": 4}, "C1"),
    "popmi_p4_densenet": ({"growth": 2, "stem": 3}, "C4"),
}
# Float64: sums in another order.
ROUNDING = 1e-10


def make(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=5, **NETWORKS[name][0]).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Fresh gammas are 1 and biases 0: they would hide a forgotten axis.
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(count=3):
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moved(model, seed):
    symmetry = describe_model(model)
    element = random_element(symmetry, torch.Generator().manual_seed(seed))
    return apply(model.state_dict(), symmetry, element)


def mean(first, second):
    return {key: (tensor + second[key]) / 2 if tensor.is_floating_point() else tensor for key, tensor in first.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_move_keeps_the_function_and_means_of_moved_models_are_invariant(name):
    model, group = make(name), point_group(NETWORKS[name][1])
    first, before = copy.deepcopy(model.state_dict()), model(images())
    second = moved(model, 3)
    assert any(not torch.equal(tensor, second[key]) for key, tensor in first.items())
    model.load_state_dict(second)
    torch.testing.assert_close(model(images()), before, atol=ROUNDING, rtol=ROUNDING)
    model.load_state_dict(mean(first, second))
    assert equivariance_error(model, images(), group) <= ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shuffled_copy_is_put_back_in_order(name):
    model = make(name)
    first, apart = model.state_dict(), make(name, seed=1).state_dict()
    # A little apart, so that there is something to average.
    near = {key: tensor + 0.01 * apart[key] if tensor.is_floating_point() and "running" not in key else tensor
            for key, tensor in first.items()}  # fmt: skip
    other = copy.deepcopy(model)
    other.load_state_dict(near)
    updates = [Update("a", first, 5), Update("b", moved(other, 4), 5)]
    fused = fuse("opm", updates, reference=first, symmetry=describe_model(model))
    for key, tensor in mean(first, near).items():
        torch.testing.assert_close(fused.state[key], tensor, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_forgetting_an_axis_is_noticed(name):
    model = make(name)
    found = describe_model(model)
    assert verify_symmetry(model, found)
    for lost in range(0, len(found.axes), 7):
        kept = tuple(axis for index, axis in enumerate(found.axes) if index != lost)
        if {axis.space for axis in kept} == set(found.spaces):
            assert not verify_symmetry(model, replace(found, axes=kept)), found.axes[lost]


def over_an_orbit(name):
    context = MethodContext(lambda: timm.create_model("popmi_vit_micro", num_classes=5), "C4", 32, 3, 5, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method(name).build(context).double().eval()


@pytest.mark.parametrize("name", ["equitune-logits", "equitune-features", "equizero", "tta", "posthoc-mean"])
def test_a_backbone_run_over_an_orbit_moves_as_it_does_alone(name):
    model = over_an_orbit(name)
    found, x = describe_model(model), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert {space.removeprefix("backbone.") for space in found.spaces} == set(describe_model(model.backbone).spaces)
    before, state = model(x), moved(model, 5)
    assert any(not torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), before, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("name", ["lambda-equitune", "equiattention", "canonicalisation", "posthoc-score"])
def test_what_a_method_adds_is_named_as_not_described(name):
    with pytest.raises(ModelError, match=r"module '(score|query|key|energy|merge)[\w.]*' is not described"):
        describe_model(over_an_orbit(name))
