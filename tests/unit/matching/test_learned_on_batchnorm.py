"""Learned maps on networks whose norms take statistics over a batch: no batch may hold a lone image."""

import pytest
import torch
from timm import create_model

from popmi_core.errors import UpdateError
from popmi_core.matching import describe_model, random_element
from popmi_core.matching.elements import Element, apply
from popmi_core.matching.learn import learn_element


def learned(count):
    """Learn for two steps on so many images of 32 pixels, of which ResNet-18 makes maps of one pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("resnet18", num_classes=3).eval()
    symmetry = describe_model(model, image_size=32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    candidate = apply(state, symmetry, random_element(symmetry, generator))
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return learn_element(
        model, state, candidate, symmetry, images, None, start=Element(), steps=2, batch_size=16, generator=generator
    )


@pytest.mark.parametrize("count", [2, 17, 21])
def test_a_remainder_of_one_image_is_no_batch_of_its_own(count):
    assert len(learned(count).losses) == 2


def test_one_image_alone_is_refused():
    with pytest.raises(UpdateError, match="there is one image, expected at least two"):
        learned(1)
