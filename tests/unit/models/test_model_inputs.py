"""Pixels become what the backbone was made for."""

import pytest
import torch

from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import build_model, normalise


@pytest.mark.parametrize("group", ["none", "C4"])
def test_pixels_are_scaled_with_the_models_own_mean_and_std(group):
    config = ModelConfig(backbone="test_resnet", image_size=32, adapter=AdapterConfig(group=group))
    model = build_model(config, 7, seed=0)
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 4, 5, 3)
    result = normalise(images, model)
    assert result.shape == (2, 3, 4, 5)
    assert result.dtype == torch.float32
    mean, std = torch.tensor(model.pretrained_cfg["mean"]), torch.tensor(model.pretrained_cfg["std"])
    # One rounding of division and subtraction each.
    torch.testing.assert_close(result[0, :, 0, 0], (torch.tensor([0, 128, 255]) / 255 - mean) / std, atol=1e-6, rtol=0)


@pytest.mark.parametrize("images", [torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ModelError, match=r"expected torch.uint8 of shape \[n, height, width, 3\]"):
        normalise(images, torch.nn.Identity())
