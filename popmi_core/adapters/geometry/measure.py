"""How far the answer of a tied model moves when what enters it after the merge is turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.adapters.geometry.rules import Reason
from popmi_core.adapters.geometry.trace import after_stage, channels_of, grid_axes, stages_of
from popmi_core.groups import Element, PointGroup, act

# Between the float32 residue of exact models (1e-5) and the mildest break met (6e-3, see ``exactness``).
TOLERANCE = 1e-3
_IMAGES = 2


def blobs(twin: nn.Module, image_size: int, *, seed: int = 0) -> Tensor:
    """Return smooth random images [2, channels, side, side] in the model's number format."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(_IMAGES, channels_of(twin), 4, 4, generator=generator)
    images = functional.interpolate(small, size=(image_size, image_size), mode="bicubic")
    return images.to(next(twin.parameters()).dtype)


def tail_error(twin: Any, images: Tensor, group: PointGroup, merge_block: int, *, whole: bool = True) -> float:
    """Return max |f(g z) - f(z)| over the spread of logits, z being what leaves stage ``merge_block`` (images at 0).

    ``whole``: over the whole group; its generators alone tell whether the error is zero.
    """
    elements = group.elements[1:] if whole else group.generators
    with torch.no_grad():
        logits = twin(images)
        moved = [(_tail(twin, images, element, merge_block) - logits).abs().max() for element in elements]
    spread = logits.std(dim=0).mean().clamp_min(torch.finfo(logits.dtype).tiny)
    return float(torch.stack(moved).max() / spread) if moved else 0.0


def first_break(twin: nn.Module, images: Tensor, group: PointGroup, merge_block: int) -> Reason | None:
    """Return the innermost module whose input turns with the image and whose output does not; None if all turn."""
    worst: Reason | None = None
    for element in group.generators:
        upright = _recorded(twin, images, Element(0, False), merge_block)
        turned = _recorded(twin, images, element, merge_block)
        for name, module in twin.named_modules():
            if name not in upright or name not in turned:
                continue
            before, after = (_moved(upright[name][side], turned[name][side], element, twin) for side in (0, 1))
            if before < TOLERANCE <= after and (worst is None or name.startswith(worst.module)):
                what = f"a {type(module).__name__} keeps places in a way that is not known here"
                worst = Reason(name, what, f"its output moves by {after:.2g} of its spread", lasting=True)
        if worst is not None:
            return worst
    return None


def _tail(twin: Any, images: Tensor, element: Element, merge_block: int) -> Tensor:
    if merge_block == 0:
        return twin(act(element, images))
    with after_stage(twin, stages_of(twin)[merge_block - 1], lambda output: turn_map(twin, output, element)):
        return twin(images)


def turn_map(backbone: Any, features: Tensor, element: Element) -> Tensor:
    """Return a stage's output with its square map turned: tokens [n, t, d], [n, c, s, s] or [n, s, s, c]."""
    if features.ndim == 3:
        return _turn_tokens(features, element, int(getattr(backbone, "num_prefix_tokens", 0)))
    return act(element, features, dims=grid_axes(backbone))


def _turn_tokens(features: Tensor, element: Element, prefix: int) -> Tensor:
    side = round((features.shape[1] - prefix) ** 0.5)
    grid = features[:, prefix:].reshape(len(features), side, side, -1)
    return torch.cat([features[:, :prefix], act(element, grid, dims=(1, 2)).flatten(1, 2)], dim=1)


def _recorded(twin: Any, images: Tensor, element: Element, merge_block: int) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            del module
            found.setdefault(name, (args[0] if args else None, output))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in twin.named_modules()]
    try:
        with torch.no_grad():
            _tail(twin, images, element, merge_block)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _moved(upright: Any, turned: Any, element: Element, twin: Any) -> float:
    """Return by how much of its spread a tensor is not the turned other one, in the reading that fits best."""
    if not (isinstance(upright, Tensor) and isinstance(turned, Tensor) and upright.shape == turned.shape):
        return float("nan")
    prefix = int(getattr(twin, "num_prefix_tokens", 0))
    readings = [upright]
    if upright.ndim == 4 and upright.shape[2] == upright.shape[3]:
        readings.append(act(element, upright, dims=(2, 3)))
    if upright.ndim == 4 and upright.shape[1] == upright.shape[2]:
        readings.append(act(element, upright, dims=(1, 2)))
    for extra in dict.fromkeys((prefix, 0)):
        if upright.ndim == 3 and round(max(0, upright.shape[1] - extra) ** 0.5) ** 2 == upright.shape[1] - extra:
            readings.append(_turn_tokens(upright, element, extra))
    spread = upright.std().clamp_min(torch.finfo(upright.dtype).tiny)
    return min(float((turned - reading).abs().max() / spread) for reading in readings)
