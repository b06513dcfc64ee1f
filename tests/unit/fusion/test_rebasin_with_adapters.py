"""Methods that only permute keep the function of models with adapters, too."""

import pytest
import torch
from small_families import ADAPTED, member

from popmi_core.fusion import Update, fuse
from popmi_core.matching.check import perturbed


def shuffled(tensor, generator):
    """The same numbers in any order: a model that has nothing to do with the first."""
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)


@pytest.mark.parametrize("name", ADAPTED)
def test_a_model_that_git_rebasin_moved_computes_what_it_did(name):
    site, generator = member(name), torch.Generator().manual_seed(1)
    second = {key: perturbed(key, shuffled(tensor, generator), generator) for key, tensor in site.state.items()}

    # Twice the same model: the mean is that model, in the reference's basis.
    twice = [Update(site_name, second, 1) for site_name in ("a", "b")]
    fused = fuse("git_rebasin", twice, reference=site.state, symmetry=site.symmetry).state

    outputs = []
    for state in (second, fused):
        site.model.load_state_dict(dict(state), strict=True)
        with torch.no_grad():
            outputs.append(site.model(site.images))
    assert not all(torch.equal(fused[key], tensor) for key, tensor in second.items())
    # Sums in another order.
    assert float((outputs[0] - outputs[1]).norm()) <= 1e-10 * float(outputs[0].norm())
