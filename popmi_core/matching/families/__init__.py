"""One file a family of timm models; ``describe`` asks the model itself, then who knows it; adapters included.

Models of regular fields (``attach(..., fields="regular")``) are described by the same files. Their tensors hold one
number where a dense layer has |G| equal or turned ones, so an entry of a space is a field, and what moves are fields as
wholes: any map ``M`` of fields acts on channels as ``M kron I`` and commutes with the group. LayerNorm's mean over all
channels is the mean of the fields' means, so that it lets the same ``M`` pass as between channels, ``M 1 = 1``. Moved
models, and every mean of them, are therefore equivariant. Left out is what commutes beyond that: shifts of a field by
the group, and maps that differ by irreducible.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from popmi_core.adapters.regular.layers import Readout, Regular
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
# Those that know the difference between what a layer writes (fields) and what it reads (their channels).
_REGULAR = ("vit", "resnet", "convnext", "efficientnet")


def describe(model: nn.Module) -> Symmetry:
    """Return the symmetry group of a model as its own method or its family's file writes it down; not yet tested.

    ``describe_symmetry(self, build)`` of the model (below PREA: of the backbone) comes first, so that a subclass may
    correct what its family says; names in it are those of its own state dict. Tests: see check.py.

    Raises:
        ModelError: If no family knows the model or a part of it; the message names the module.
    """
    backbone, prefix = adapters.inside(model)
    name, write = _author(backbone)
    order, classifiers = _fields(model)
    if order > 1 and name not in _REGULAR and name in FAMILIES:
        raise ModelError(
            f"{type(backbone).__name__} computes in regular fields, which are described in {', '.join(_REGULAR)} only, "
            f"not in {name}. {BY_HAND}; or take a rule that needs no description, such as 'average'."
        )
    build = Builder(name, model.state_dict(), prefix=prefix, order=order, summed=classifiers)
    write(build)
    adapters.describe(model, build)
    return build.done()


def _fields(model: nn.Module) -> tuple[int, set[str]]:
    """Return how many channels a field has (1: no regular fields), and the layers that read fields as one number."""
    orders = {module.order for module in model.modules() if isinstance(module, Regular)}
    if len(orders) > 1:
        raise ModelError(
            f"{type(model).__name__} has fields of {sorted(orders)} channels, expected one group. {BY_HAND}."
        )
    classifiers = {name for name, module in model.named_modules() if isinstance(module, Readout)}
    return (orders.pop() if orders else 1), classifiers


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
