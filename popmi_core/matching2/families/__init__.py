"""One file a family of timm models; ``describe`` finds the one that knows a model, adapters included."""

from __future__ import annotations

from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching2.builder import Builder
from popmi_core.matching2.families import vit
from popmi_core.matching2.symmetry import Symmetry

FAMILIES = {"vit": vit}


def describe(model: nn.Module) -> Symmetry:
    """Return the symmetry group of a model as its family's file writes it down; not yet tested (see check.py).

    Raises:
        ModelError: If no family knows the model or a part of it; the message names the module.
    """
    for name, family in FAMILIES.items():
        if family.knows(model):
            build = Builder(name, model.state_dict())
            family.describe(model, build)
            return build.done()
    raise ModelError(
        f"{type(model).__name__} is of no family that is described ({', '.join(FAMILIES)}). Describe it by hand with "
        "popmi_core.matching.Builder, or take a rule that needs no description, such as 'average'."
    )
