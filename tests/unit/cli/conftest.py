"""Two small trained-looking models and a few images, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import popmi_core.models  # noqa: F401  (registers the presets)

MICRO = "popmi_vit_micro"
CLASSES = 8


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a small model with every weight away from its start; returns its plain safetensors file."""

    def write(label: str, seed: int = 0, *, name: str = MICRO, classes: int = CLASSES, **arguments: Any) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, num_classes=classes, **arguments)
            state = {n: _away(t) for n, t in model.state_dict().items()}
        path = tmp_path / f"{label}.safetensors"
        save_file(state, path)
        return path

    return write


def _away(tensor: Tensor) -> Tensor:
    return tensor + 0.1 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Images of eight classes in MedMNIST's layout."""
    rng = np.random.default_rng(0)
    content: dict[str, np.ndarray] = {}
    for split, number in (("train", 48), ("val", 24), ("test", 32)):
        content[f"{split}_images"] = rng.integers(0, 256, (number, 28, 28, 3), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(number) % CLASSES)[:, None]
    np.savez(tmp_path / "bloodmnist.npz", **content)
    return tmp_path / "bloodmnist.npz"
