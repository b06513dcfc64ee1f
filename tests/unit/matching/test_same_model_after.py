"""Fused and aligned models are stock models: they load strictly and cost what their parents cost."""

import pytest
import torch
from small_families import EVERY, member
from torch.utils.flop_counter import FlopCounterMode

from popmi_core.fusion import Update, fuse
from popmi_core.matching import apply, match, random_element
from popmi_core.matching.check import perturbed


@pytest.fixture(scope="module", params=EVERY)
def family(request):
    return request.param, member(request.param)


def cost(model, images):
    """Parameters, and multiplications and additions of one pass (counted, not timed)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def other(site):
    """Weights of another model of the family, in another basis."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: perturbed(name, tensor, generator) for name, tensor in site.state.items()}
    return apply(drawn, site.symmetry, random_element(site.symmetry, generator), like=site.state)


@pytest.mark.parametrize("how", ["aligned", "fused"])
def test_the_result_loads_into_the_stock_model_and_costs_the_same(family, how):
    name, site = family
    before, second = cost(site.model, site.images), other(site)
    stock = member(name).model
    if how == "aligned":
        state = match(second, site.state, site.symmetry, sweeps=2).state
    else:
        updates = [Update("a", site.state, 1), Update("b", second, 1)]
        state = fuse("opm", updates, reference=site.state, symmetry=site.symmetry, sweeps=2).state

    stock.load_state_dict(dict(state), strict=True)

    assert before[1] > 0
    assert cost(stock, site.images) == before
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in site.state.items()
    }
