"""Group CNNs promise their group, and the certificate looks at the kernels that are made of their free ones."""

from __future__ import annotations

import pytest
import timm
import torch

import popmi_core.invariance.registered  # noqa: F401  (registers the networks)
from popmi_core.equivariance.certificate import certify_algebra, group_of, residues
from popmi_core.groups import point_group
from popmi_core.invariance.gcnn import RegularConv


@pytest.mark.parametrize("name", ["popmi_p4_cnn", "popmi_p4m_cnn", "popmi_p4_densenet"])
def test_group_networks_promise_their_group_and_keep_it(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    own = group_of(model)
    assert own is not None
    assert own.name == ("D4" if name == "popmi_p4m_cnn" else "C4")

    assert certify_algebra(model, 28, own).verdict == "proved"
    assert certify_algebra(model, 28, point_group("C2")).verdict == "proved"
    if own.name == "C4":
        assert certify_algebra(model, 28, point_group("D4")).verdict != "proved"
    layer = next(module for module in model.modules() if isinstance(module, RegularConv))
    noise = torch.randn(layer.kernel().shape, generator=torch.Generator().manual_seed(0))

    class Spoilt(RegularConv):
        def kernel(self) -> torch.Tensor:
            return super().kernel() + 0.1 * noise.to(self.weight)

    layer.__class__ = Spoilt
    assert certify_algebra(model, 28, own).verdict == "not equivariant"
    assert max(one.relative for one in residues(model, own)) > 0.01


def test_a_network_of_the_trivial_group_promises_nothing() -> None:
    assert group_of(timm.create_model("popmi_z2_cnn", num_classes=3)) is None
