"""Small updates: a state of three tensors, and a ViT whose heads are known."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from popmi_core.fusion import Score, Update
from popmi_core.fusion.permutable import Permutable, move
from popmi_core.matching.elements import Move
from popmi_core.matching.symmetry import Space


@pytest.fixture
def reference() -> dict[str, Tensor]:
    return {
        "layer.weight": torch.zeros(3, 4),
        "norm.running_var": torch.ones(3),
        "norm.num_batches_tracked": torch.tensor(0),
    }


@pytest.fixture
def make_updates(reference: dict[str, Tensor]) -> Callable[..., list[Update]]:
    def make(count: int, *, seed: int = 0) -> list[Update]:
        source = torch.Generator().manual_seed(seed)
        return [
            Update(
                f"site_{index}",
                {
                    "layer.weight": torch.randn(3, 4, generator=source),
                    "norm.running_var": 1 + torch.rand(3, generator=source),
                    "norm.num_batches_tracked": torch.tensor(10 * index),
                },
                num_examples=10 + 7 * index,
            )
            for index in range(count)
        ]

    return make


@pytest.fixture
def small_vit() -> Callable[..., nn.Module]:
    def make(seed: int = 0, **changes: Any) -> nn.Module:
        torch.manual_seed(seed)
        shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
        model = timm.create_model("vit_tiny_patch16_224", **(shape | changes)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


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
def scorer() -> Callable[[str, dict[str, Tensor]], dict[str, Score]]:
    """Two sites whose loss is the mean square distance of all weights to 0 and to 1."""

    def score(name: str, state: dict[str, Tensor]) -> dict[str, Score]:
        flat = torch.cat([tensor.double().flatten() for tensor in state.values() if tensor.is_floating_point()])
        return {
            "site_0": Score(30, float(flat.square().mean()), accuracy=0.5),
            "site_1": Score(10, float((flat - 1).square().mean()), accuracy=0.5),
        }

    return score


@pytest.fixture
def shuffle() -> Callable[..., dict[str, Tensor]]:
    """A state whose units are put in a random order, heads as a whole and channels inside their heads or groups."""

    def order(space: Space, width: int, outer: Tensor, source: torch.Generator) -> Tensor:
        if width == space.size:
            return outer
        shifts = torch.tensor(space.shifts) if space.shifts else None
        inside = [
            torch.randperm(space.inner, generator=source)
            if shifts is None
            else shifts[torch.randint(len(shifts), (), generator=source)]
            for _ in range(space.size)
        ]
        return (outer[:, None] * space.inner + torch.stack(inside)).flatten()

    def make(state: dict[str, Tensor], group: Permutable, seed: int) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(seed)
        moves = {}
        for name, space in group.spaces.items():
            outer = torch.randperm(space.size, generator=source)
            for part, key in group.keys(name).items():
                fixed = space.kind == "heads" and part and space.maps[part] == "fixed"
                moved = order(space, group.units.spaces[key].size, outer, source)
                still = (outer[:, None] * space.inner + torch.arange(space.inner)).flatten()
                moves[key] = Move(still if fixed else moved)
        return move(state, group, moves)

    return make


@pytest.fixture
def windowed() -> Callable[[str], nn.Module]:
    """A small Swin, V1 or V2, with every weight away from its start."""

    def make(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shape = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
            model: nn.Module = timm.create_model(name, num_classes=3, **shape).double().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make
