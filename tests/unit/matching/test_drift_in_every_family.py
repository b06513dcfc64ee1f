"""A site that drifted from the global model is left bit for bit in every family; what was moved is brought back."""

import pytest
import torch
from small_families import EVERY, member, noisy

from popmi_core.matching import Matcher, apply, random_element
from popmi_core.matching.elements import Element


@pytest.fixture(scope="module", params=EVERY)
def site(request):
    return member(request.param)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_drift_is_left_bit_for_bit(site, share):
    matcher = Matcher(site.state, site.symmetry)
    for seed in range(3):
        candidate = noisy(site.state, share, torch.Generator().manual_seed(seed))

        found = matcher.match(candidate)

        moved = [name for name, stays in found.identity.items() if not stays]
        assert moved == []
        assert found.kin
        assert set(found.gains.values()) == {0.0}
        assert all(torch.equal(found.state[name], tensor) for name, tensor in candidate.items())


@pytest.mark.parametrize("name", ["layers.0.blocks.0.attn.cpb_mlp", "layers.1.blocks.0.mlp"])
def test_an_order_that_is_none_of_drift_is_undone_beside_drift_in_crowded_spaces(name):
    """Position networks have 512 units of a few numbers: with drift the nearest unit is often another one."""
    site = member("swinv2")
    generator = torch.Generator().manual_seed(1)
    planted = random_element(site.symmetry, generator).moves[name]
    drifted = noisy(site.state, 0.1, generator)

    found = Matcher(site.state, site.symmetry).match(apply(drifted, site.symmetry, Element({name: planted})))

    still = torch.arange(len(planted.perm))
    put_back = planted.perm[found.element.moves[name].perm] == still
    assert set(found.element.moves) == {name}
    # Of the crowded ones a few lie so near each other that drift has changed which is which.
    assert float(put_back.double().mean()) > 0.9
