"""Where the image's plane lies in a hidden tensor: which axes are rows and columns, if any."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

Layout = Literal["channels first", "channels last", "tokens", "no place"]

_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, LayerNorm2d)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_LAST = (nn.Linear, nn.LayerNorm)


class Places:
    """Finds the plane in the tensors of one image (and its turned copies) as it goes through a model.

    Args:
        model: Says how many class and register tokens come before those of the grid.
        copies: Rows that belong to the image: 1, or also the size of the group whose copies a model makes.
    """

    def __init__(self, model: nn.Module, copies: tuple[int, ...] = (1,)) -> None:
        counts = [getattr(module, "num_prefix_tokens", None) for module in model.modules()]
        self._prefix = next((count for count in counts if isinstance(count, int)), 0)
        self._copies = copies
        # What a tensor is that could be either is what the last one was.
        self._last: Layout = "channels first"

    def layout(self, tensor: Tensor, module: nn.Module) -> Layout | None:
        """Return the layout; None where tensors are no maps of the image (windows of it, heads, other shapes)."""
        if tensor.ndim < 2 or tensor.shape[0] not in self._copies:
            return None
        if tensor.ndim == 2:
            return "no place"
        if tensor.ndim == 3:
            return "no place" if tensor.shape[1] == 1 else ("tokens" if self._side(tensor) else None)
        if tensor.ndim != 4:
            return None
        found = self._square(tensor, module)
        if found in ("channels first", "channels last"):
            self._last = found
        return found

    def grid(self, tensor: Tensor, layout: Layout) -> Float[Tensor, "*lead copies channels side side"]:
        """Return the map in a tensor of this layout (leading axes, such as of gradients, stay)."""
        if layout == "channels last":
            return tensor.movedim(-1, -3)
        if layout == "tokens":
            side = self._side(tensor)
            # Class and register tokens have no place; they come first.
            return tensor[..., tensor.shape[-2] - side * side :, :].unflatten(-2, (side, side)).movedim(-1, -3)
        return tensor

    def _side(self, tokens: Tensor) -> int:
        """Return the side of the tokens' grid; 0 if they are none."""
        for extra in dict.fromkeys((self._prefix, 0)):
            cells = tokens.shape[-2] - extra
            side = math.isqrt(max(cells, 0))
            if side and side * side == cells:
                return side
        return 0

    def _square(self, tensor: Tensor, module: nn.Module) -> Layout | None:
        _, second, third, fourth = tensor.shape
        first, last = third == fourth, second == third
        if third == fourth == 1 or second == third == 1:
            return "no place"
        if isinstance(module, (*_FIRST, *_POOLS)):
            return "channels first" if first else None
        if isinstance(module, _LAST):
            return "channels last" if last else None
        if first and last:
            return self._last
        return "channels first" if first else ("channels last" if last else None)
