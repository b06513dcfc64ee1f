"""One file a family of timm models; ``describe`` finds the one that knows a model, adapters included."""

from __future__ import annotations

from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching.builder import Builder
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
    """Return the symmetry group of a model as its family's file writes it down; not yet tested (see check.py).

    Raises:
        ModelError: If no family knows the model or a part of it; the message names the module.
    """
    backbone, prefix = adapters.inside(model)
    for name, family in FAMILIES.items():
        if family.knows(backbone):
            build = Builder(name, model.state_dict(), prefix=prefix)
            family.describe(backbone, build)
            adapters.describe(model, build)
            return build.done()
    raise ModelError(
        f"{type(backbone).__name__} is of no described family ({', '.join(FAMILIES)}). Describe it by hand with "
        "popmi_core.matching.Builder, or take a rule that needs no description, such as 'average'."
    )
