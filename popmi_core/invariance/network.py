"""What timm expects of a classifier, for networks that are equivariant from their first layer to their pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.invariance.method import Phase, Train

# So far around the size that was asked for; no image of a study is larger.
_SEARCHED = 1 << 14


class InvariantNet(nn.Module):
    """Features [n, channels, ...] -> ``pool`` -> [n, num_features] -> one linear layer -> logits.

    A subclass sets up its layers, then calls ``set_head``; it defines ``forward_features`` and ``pool``. What
    ``pool`` returns is invariant, so the last layer may be anything.
    """

    trained: Train = "all"
    num_classes: int
    num_features: int
    head_hidden_size: int
    head: nn.Module

    def set_head(self, num_features: int, num_classes: int) -> None:
        """Make the last layer, or none for ``num_classes`` 0."""
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last equivariant features [n, ...]."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """Return the invariant features [n, num_features]."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [n, num_classes], or with ``pre_logits`` the invariant features that the head reads."""
        pooled = self.pool(features)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [n, num_classes] of normalised images [n, channels, side, side]."""
        return self.forward_head(self.forward_features(images))

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase in which ``trained`` moves: everything unless the catalogue was asked for less."""
        if self.trained == "none":
            return ()
        return (Phase(self.trained, 1.0, ("",) if self.trained == "all" else ("head.",)),)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; pooling is part of the guarantee and stays.

        Raises:
            ModelError: If another pooling is asked for.
        """
        if global_pool is not None:
            raise ModelError(
                f"{type(self).__name__}: global_pool is {global_pool!r}, its own pooling cannot be changed."
            )
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()


def square_side(name: str, img_size: int | tuple[int, int], fits: Callable[[int], bool], reason: str) -> int:
    """Return the side of square images that ``fits``.

    Raises:
        ModelError: If the image is not square, or its side breaks exactness; the nearest exact side is named, the
            larger of two that are as near.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width:
        raise ModelError(f"{name}: images are {height}x{width}, expected square ones. Crop or pad them.")
    if not fits(height):
        near = _nearest(height, fits)
        advice = "No size near it is exact" if near is None else f"The nearest exact size is {near}"
        raise ModelError(f"{name} is not exact on {height}x{height} images: {reason}. {advice}.")
    return height


def _nearest(side: int, fits: Callable[[int], bool]) -> int | None:
    around = (near for step in range(1, _SEARCHED) for near in (side + step, side - step))
    return next((near for near in around if near > 0 and fits(near)), None)


def whiten(model: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Draw every convolution and linear layer anew: normal with deviation gain / sqrt(fan_in), no bias (GSA-Nets)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def network_cfg(image_size: int, first_layer: str) -> dict[str, Any]:
    """Return what timm keeps beside an architecture: input size, normalisation, names of the first and last layer."""
    return {
        "num_classes": 1000,
        "input_size": (3, image_size, image_size),
        "pool_size": None,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_layer,
        "classifier": "head",
        "fixed_input_size": True,
    }
