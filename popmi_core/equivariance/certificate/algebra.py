"""The algebraic part of the certificate: no weight off the subspace, no uneven step: exact but for rounding."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from popmi_core.adapters import equivariance_error
from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.geometry import Reason, check_geometry
from popmi_core.adapters.geometry.measure import blobs
from popmi_core.adapters.prea import Prea, detach
from popmi_core.adapters.trunk import depth
from popmi_core.equivariance.certificate.regularfields import unread
from popmi_core.equivariance.certificate.residues import Residue, is_octic, residues
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup
from popmi_core.groups.octic import D4
from popmi_core.invariance.gcnn import GroupCnn, GroupDenseNet

Verdict = Literal["proved", "not proved", "not equivariant"]
WEIGHT_TOLERANCE = 1e-6
"""Relative: a dense float32 weight written from one coefficient is 0, one averaged in float32 is off by about 1e-7."""
BROKEN_FROM = 1e-3
"""Measured error from which a model is called not equivariant; float32 leaves about 1e-5 in exact models."""
ROUNDING = 1e-6
"""Measured float64 error from which zero residues prove nothing: 1e-12 is usual, 2e-7 where logits hardly spread."""


@dataclass(frozen=True)
class Algebraic:
    """What holds for the group's own elements, whatever the image.

    Attributes:
        group: Name of the group.
        verdict: ``proved``: every residue is within rounding, no step is uneven, every layer is known; ``not
            equivariant``: the measured error says so; ``not proved``: it may hold, but something is not known.
        why: One sentence.
        residues: Of every constrained weight.
        reasons: Steps of the geometry that cannot commute.
        error32: Measured max |f(gx) - f(x)| over the spread of logits, in float32: the rounding that is left.
        error64: The same in float64.
    """

    group: str
    verdict: Verdict
    why: str
    residues: tuple[Residue, ...]
    reasons: tuple[Reason, ...]
    error32: float
    error64: float

    @property
    def worst(self) -> Residue | None:
        """Return the weight that is furthest off, in proportion."""
        return max(self.residues, key=lambda one: one.relative, default=None)


def group_of(model: nn.Module) -> PointGroup | None:
    """Return the group a model promises to respect; None for one that promises nothing."""
    if isinstance(model, Prea):
        return model.group
    if is_octic(model):
        return D4
    if isinstance(model, GroupCnn | GroupDenseNet):
        return model.group if len(model.group) > 1 else None
    promised = getattr(model, "field_group", None)
    return promised if isinstance(promised, PointGroup) else None


def certify_algebra(model: nn.Module, image_size: int, group: PointGroup) -> Algebraic:
    """Check weights and geometry, and measure what rounding leaves; the model is not changed.

    Raises:
        ModelError: If a weight or an answer is NaN or infinite.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"'{name}' holds NaN or infinity, expected finite weights. Take another file.")
    found, reasons = residues(model, group), geometry_reasons(model, image_size, group)
    errors = [_measured(model, image_size, group, dtype) for dtype in (torch.float32, torch.float64)]
    verdict, why = _judge(model, group, found, reasons, errors[1])
    return Algebraic(group.name, verdict, why, found, reasons, *errors)


def geometry_reasons(model: nn.Module, image_size: int, group: PointGroup) -> tuple[Reason, ...]:
    """Return the uneven steps after the merge, by the rules alone; networks without stages have none to look for."""
    adapted = isinstance(model, Prea)
    if not adapted and (group_of(model) is not None or not hasattr(model, "forward_features")):
        return ()
    backbone, block = (detach(model), model.merge_block) if isinstance(model, Prea) else (model, 0)
    return check_geometry(backbone, image_size, group=group, merge_block=block, measure=False, search=False).reasons


def _measured(model: nn.Module, image_size: int, group: PointGroup, dtype: torch.dtype) -> float:
    twin = copy.deepcopy(model).to(dtype).eval()
    error = equivariance_error(twin, blobs(twin, image_size), group)
    if error != error:
        raise ModelError("the model answers NaN to blurred noise, expected finite logits. Take another file.")
    return error


def _judge(
    model: nn.Module, group: PointGroup, found: tuple[Residue, ...], reasons: tuple[Reason, ...], error: float
) -> tuple[Verdict, str]:
    off = [one for one in found if not one.relative <= WEIGHT_TOLERANCE]
    if error >= BROKEN_FROM:
        names = ", ".join(f"'{one.tensor}'" for one in off[:3]) or "; ".join(str(reason) for reason in reasons[:2])
        what = names or _unmade(model, group) or _unknown(model) or "a layer that is not known"
        return "not equivariant", f"logits move by {error:.2g} of their spread; {len(off)} weight(s) off: {what}"
    if off:
        return "not proved", f"'{off[0].tensor}' is off the subspace by {off[0].relative:.2g} of its size"
    if reasons:
        return "not proved", f"uneven geometry: {reasons[0]}"
    unknown = _unknown(model) or _unmade(model, group)
    if unknown:
        return "not proved", unknown
    if error >= ROUNDING and not any(one.error for one in found):
        return (
            "not proved",
            f"logits move by {error:.2g} of their spread in float64: a layer, such as the head, is not known",
        )
    weights = f"all {len(found)} constrained weights lie" if found else "no weight is constrained, so all lie"
    return "proved", f"{weights} on the subspace and every step is even: exact but for rounding"


def _unknown(model: nn.Module) -> str | None:
    if isinstance(model, Prea) and model.fields == "regular":
        return unread(model)
    if isinstance(model, Prea):
        known = cut_of(model.backbone) is not None or model.merge_block == depth(model.backbone)
    else:
        known = group_of(model) is not None or cut_of(model) is not None
    return None if known else f"{type(model).__name__} is not known layer by layer: only measured, not proved"


def _unmade(model: nn.Module, group: PointGroup) -> str | None:
    # Copies, lifted convolutions and fields are of the model's own group: of a larger one no weight was looked at.
    own = group_of(model)
    if own is None or set(group.elements) <= set(own.elements):
        return None
    return f"the model is made for {own.name}, of which {group.name} is no part"
