"""How far a model's logits move when the image is turned, measured the one way PREA is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters.geometry.measure import blobs
from popmi_core.errors import ModelError
from popmi_core.groups import Element, PointGroup, act

# Between the float32 residue of exact models (1e-5) and the mildest real break met (6e-3: a pooling with positions).
_BROKEN = 1e-3


def equivariance_error(model: nn.Module, images: Float[Tensor, "n 3 side side"], group: PointGroup) -> float:
    """Return max |f(gx) - f(x)| over images, classes and group, over the spread of logits between images.

    The spread is the standard deviation over images, averaged over classes (dimensionless result; needs
    two images or more). The model is run as it stands: put it in evaluation mode first.
    """
    return _error(model, images, group.elements[1:])


def require_exact(model: nn.Module, image_size: int, group: PointGroup, *, name: str) -> None:
    """Run two blob images, and these turned by the group's generators, through ``model``.

    Raises:
        ModelError: If the logits move: something in the backbone (such as a head that knows places)
            breaks the symmetry, and no adapter on top can mend it.
    """
    error = _error(model, blobs(model, image_size).to(next(model.parameters())), group.generators)
    if not error < _BROKEN:
        raise ModelError(
            f"{name}: logits move by {error:.2g} of their spread under {group.name}, expected < {_BROKEN:g}. "
            "Its head depends on places; use a backbone with average pooling or a class token."
        )


def _error(model: nn.Module, images: Tensor, elements: Sequence[Element]) -> float:
    with torch.no_grad():
        logits = model(images)
        moved = [(model(act(element, images)) - logits).abs().max() for element in elements]
    spread = logits.std(dim=0).mean().clamp_min(torch.finfo(logits.dtype).tiny)
    return float(torch.stack(moved).max() / spread) if moved else 0.0
