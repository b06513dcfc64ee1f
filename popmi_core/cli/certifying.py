"""The work behind `popmi certify`: the three parts of the certificate for one model and its sites."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from popmi_core.cli.evaluation import Parts
from popmi_core.cli.opened import Opened
from popmi_core.cli.sites import some_of, together
from popmi_core.equivariance.certificate import (
    Algebraic,
    Conformal,
    Telescope,
    certify_algebra,
    conformal,
    group_of,
    telescope,
)
from popmi_core.equivariance.certificate.algebra import WEIGHT_TOLERANCE
from popmi_core.equivariance.curve import rotation_curve
from popmi_core.equivariance.turning import ANGLES
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, point_group
from popmi_core.models import normalise

TELESCOPED = (15.0, 45.0, 90.0)
"""Degrees at which the answer's change is taken apart; the last is exact on the grid."""
_IMAGES = 8
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Certificate:
    """The three parts; ``telescopes`` is empty where ``untold`` says why, ``promised`` is the model's own group."""

    promised: str | None
    algebra: Algebraic
    telescopes: tuple[Telescope, ...]
    untold: str
    sites: tuple[Conformal, ...]
    angles: tuple[float, ...] = field(default=ANGLES)

    def to_json(self) -> dict[str, Any]:
        """Every figure by name; no image, and no name of a file."""
        algebra = self.algebra
        return {
            "promised_group": self.promised,
            "algebraic": {
                "group": algebra.group,
                "verdict": algebra.verdict,
                "why": algebra.why,
                "tolerance": WEIGHT_TOLERANCE,
                "residues": [{**asdict(one), "relative": one.relative} for one in algebra.residues],
                "geometry": [str(reason) for reason in algebra.reasons],
                "error_float32": algebra.error32,
                "error_float64": algebra.error64,
            },
            "telescoping": {
                "angles": [one.angle for one in self.telescopes],
                "rms_logits_by_layer": {f"{one.angle:g}": one.sizes() for one in self.telescopes},
                "rms_logits_total": {f"{one.angle:g}": total(one) for one in self.telescopes},
                "remainder": max((one.remainder for one in self.telescopes), default=None),
                "left_out": self.untold or None,
            },
            "statistical": {"angles": list(self.angles), "sites": [asdict(one) for one in self.sites]},
        }


def certify_model(
    opened: Opened, parts: Parts, *, group: str | None, alpha: float, seed: int = 0, tell: Tell = lambda text: None
) -> Certificate:
    """Return the certificate of a model for its sites' images.

    Args:
        opened: The model.
        parts: Every site's images, at the model's size and at their own.
        group: Asked for; None is the model's own, or C4 where it promises nothing.
        alpha: The bound may fail for this share of images.
        seed: Splits images into calibration and test.
        tell: Told what is going on.

    Raises:
        ModelError: If the group is not exact on a grid, or weights or answers are not finite.
    """
    model, size = opened.model, opened.architecture.image_size
    promised = group_of(model)
    tell("weights and geometry")
    algebra = certify_algebra(model, size, _group(group, promised))
    tell("layer by layer")
    telescopes, untold = _telescopes(model, parts)
    sites = []
    for number, (site, part) in enumerate(parts.native.items()):
        tell(f"turning {len(part)} images of {site}")
        curve = rotation_curve(model, part.images, image_size=size)
        generator = np.random.default_rng([seed, number])
        sites.append(conformal(site, curve.logits, alpha=alpha, generator=generator))
    return Certificate(None if promised is None else promised.name, algebra, telescopes, untold, tuple(sites))


def total(found: Telescope) -> float:
    """Return the root mean square of the whole change, in logits."""
    return float(found.total.square().mean().sqrt())


def _group(asked: str | None, promised: PointGroup | None) -> PointGroup:
    if asked is not None:
        return point_group(asked)
    return promised or point_group("C4")


def _telescopes(model: nn.Module, parts: Parts) -> tuple[tuple[Telescope, ...], str]:
    few = some_of(together(parts.sized), _IMAGES)
    images = normalise(torch.from_numpy(few.images), model).double()
    twin = copy.deepcopy(model).double().eval()
    try:
        return tuple(telescope(twin, images, angle) for angle in TELESCOPED), ""
    except ModelError as error:
        return (), str(error)


def plain_words(found: Certificate) -> Sequence[str]:
    """Return what is certified and what is not, sentence by sentence."""
    algebra = found.algebra
    lines = [f"{algebra.group}: {algebra.verdict.upper()}. {algebra.why[:1].upper()}{algebra.why[1:]}."]
    if algebra.verdict == "proved":
        lines.append(
            f"For the {algebra.group} elements themselves every image's logits are equal in exact arithmetic. Rounding "
            f"left {algebra.error32:.1e} of their spread in float32 and {algebra.error64:.1e} in float64 on two test "
            "images; that figure is measured, not proved."
        )
    else:
        lines.append(
            f"Nothing is proved for {algebra.group}. Measured on two test images, logits move by "
            f"{algebra.error32:.2g} of their spread."
        )
    for site in found.sites:
        if site.bound >= 1:
            lines.append(
                f"{site.site}: no bound below 1 holds with probability {site.level:g}: the {site.images} calibration "
                "images are too few, or turning changes their answers wholly."
            )
            continue
        bound = f"at most {site.bound:.3g} in total variation"
        lines.append(
            f"{site.site}: turning a new image of this site changes the answer by {bound}, at the worst of "
            f"{site.angles} angles, with probability {site.level:g} (calibrated on {site.images} images; it held for "
            f"{'none' if site.coverage is None else f'{site.coverage:.1%}'} of {site.tested} others)."
        )
    lines.append("Not certified: angles between those sampled, images unlike the site's, and that the answer is right.")
    return lines
