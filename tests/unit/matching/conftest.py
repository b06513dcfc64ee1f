"""A ViT small enough to match in milliseconds, with every weight away from its initial value."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}


def _make(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **(SMALL | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh gammas are 1 and biases 0: they would hide a forgotten fold.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def small_vit() -> Callable[..., nn.Module]:
    return _make


@pytest.fixture
def outputs() -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    """Logits of eight fixed images under a state, in float64."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def run(model: nn.Module, state: dict[str, Tensor]) -> Tensor:
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            return model(images)

    return run


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
