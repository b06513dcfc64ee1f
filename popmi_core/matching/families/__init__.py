"""One file a family of timm models; ``describe`` asks the model itself, then who knows it; adapters included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching.builder import BY_HAND, METHOD, Builder
from popmi_core.matching.families import adapters, convnext, efficientnet, equivariant, mlp, resnet, swin, swinv2, vit
from popmi_core.matching.symmetry import Symmetry

FAMILIES = {
    "vit": vit,
    "swin": swin,
    "swinv2": swinv2,
    "resnet": resnet,
    "convnext": convnext,
    "efficientnet": efficientnet,
    "equivariant": equivariant,
    "mlp": mlp,
}


def describe(model: nn.Module) -> Symmetry:
    """Return the symmetry group of a model as its own method or its family's file writes it down; not yet tested.

    ``describe_symmetry(self, build)`` of the model (below PREA: of the backbone) comes first, so that a subclass may
    correct what its family says; names in it are those of its own state dict. Tests: see check.py.

    Raises:
        ModelError: If no family knows the model or a part of it; the message names the module.
    """
    backbone, prefix = adapters.inside(model)
    name, write = _author(backbone)
    build = Builder(name, model.state_dict(), prefix=prefix)
    write(build)
    adapters.describe(model, build)
    return build.done()


def _author(backbone: nn.Module) -> tuple[str, Callable[[Builder], None]]:
    """Return who describes a backbone, and what writes the description down."""
    own = getattr(backbone, METHOD, None)
    if own is not None:
        return f"{type(backbone).__name__}.{METHOD}", own
    for name, family in FAMILIES.items():
        if family.knows(backbone):
            return name, partial(family.describe, backbone)
    raise ModelError(
        f"{type(backbone).__name__} is of no described family ({', '.join(FAMILIES)}). {BY_HAND}; or take a rule that "
        "needs no description, such as 'average'."
    )
