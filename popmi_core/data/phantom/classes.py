"""How often each class shows each feature, and the spread of its size, border and colour.

Where a series counted a feature, its share is near that count: strawberry pattern in 95 % and scale in 85 % of facial
actinic keratoses (Zalaudek et al. 2006, doi:10.1111/j.1365-2133.2006.07426.x); network in 72 %, white patch in 57 %,
dotted vessels in 31 % of dermatofibromas (Zaballos et al. 2008, doi:10.1001/archdermatol.2007.8); cysts and comedo-like
openings in about two thirds, network-like structures in 46 % of seborrhoeic keratoses (Braun et al. 2002,
doi:10.1001/archderm.138.12.1556); arborising vessels in 82 % of basal cell carcinomas with visible vessels (Argenziano
et al. 2004, Arch. Dermatol. 140:1485). Shares are lowered where a class of the public sets is wider than the series.
The others follow the direction of the ABCD rule (Nachbar et al. 1994, J. Am. Acad. Dermatol. 30:551), the consensus on
pigmented lesions (Argenziano et al. 2003, doi:10.1067/mjd.2003.281) and Menzies et al. 2000 (Arch. Dermatol. 136:1012):
round numbers, chosen so that classes overlap. None was fitted to images, and none says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from popmi_core.data.phantom import pigment, surface, vessels
from popmi_core.data.phantom.canvas import Floats
from popmi_core.data.phantom.layers import Layers
from popmi_core.data.phantom.lesion import Lesion

Feature: TypeAlias = Callable[[np.random.Generator, Lesion, Floats], Layers]

# Probability of each feature, in percent, in the order of DERMOSCOPY_CLASSES.
#                                akiec bcc bkl  df mel  nv vasc
FEATURES: tuple[tuple[Feature, tuple[int, ...]], ...] = (
    (pigment.network, (5, 2, 30, 70, 25, 60, 0)),
    (pigment.atypical_network, (6, 3, 8, 4, 55, 10, 0)),
    (pigment.globules, (6, 10, 15, 5, 45, 40, 2)),
    (pigment.blotch, (4, 5, 8, 2, 45, 12, 5)),
    (pigment.ridges, (2, 0, 40, 0, 3, 3, 0)),
    (pigment.leaves, (0, 40, 2, 0, 3, 1, 0)),
    (pigment.nests, (0, 50, 3, 0, 8, 3, 3)),
    (vessels.strawberry, (60, 3, 2, 3, 1, 1, 0)),
    (vessels.dotted, (40, 10, 10, 30, 15, 5, 3)),
    (vessels.arborising, (4, 65, 3, 3, 5, 2, 3)),
    (vessels.lacunae, (1, 2, 1, 2, 2, 1, 88)),
    (pigment.regression, (8, 8, 15, 5, 35, 5, 0)),
    (pigment.veil, (0, 8, 8, 2, 45, 4, 8)),
    (vessels.ulcer, (12, 35, 3, 3, 8, 1, 8)),
    (surface.milia, (3, 5, 50, 3, 4, 4, 0)),
    (surface.comedos, (2, 2, 50, 0, 3, 3, 0)),
    (surface.scar, (4, 6, 4, 60, 5, 2, 2)),
    (surface.scale, (60, 15, 15, 10, 4, 1, 3)),
)

# Mean of each trait per class; "spread" is the standard deviation every class shares.
#                        akiec   bcc   bkl    df   mel    nv  vasc  spread
_TRAITS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "radius": (0.58, 0.48, 0.56, 0.46, 0.62, 0.48, 0.40, 0.16),
        "asymmetry": (0.20, 0.17, 0.14, 0.08, 0.21, 0.08, 0.07, 0.06),
        "irregularity": (0.16, 0.12, 0.11, 0.07, 0.13, 0.05, 0.05, 0.04),
        "softness": (1.10, 0.90, 0.35, 0.90, 0.50, 0.50, 0.35, 0.20),
        "melanin": (0.25, 0.18, 0.60, 0.38, 0.85, 0.75, 0.05, 0.25),
        "blood": (0.40, 0.30, 0.10, 0.28, 0.12, 0.12, 0.45, 0.13),
        "variegation": (0.40, 0.35, 0.35, 0.25, 0.60, 0.25, 0.20, 0.12),
        "streaks": (-0.5, -0.5, -0.5, -0.5, 0.15, -0.3, -0.5, 0.25),
        "sun": (0.70, 0.50, 0.45, 0.25, 0.35, 0.25, 0.25, 0.25),
    }
)
_FLOOR: Mapping[str, float] = MappingProxyType({"radius": 0.14, "softness": 0.15})


@dataclass(frozen=True, eq=False)
class Traits:
    """Traits of ``n`` lesions, each ``[n]``, not negative.

    Radius is in half-fields, softness in quarters of the radius, melanin and blood in absorbance units; the rest
    has no unit.
    """

    radius: Floats
    asymmetry: Floats
    irregularity: Floats
    softness: Floats
    melanin: Floats
    blood: Floats
    variegation: Floats
    streaks: Floats
    sun: Floats


def draw_traits(rng: np.random.Generator, targets: npt.NDArray[np.int64]) -> Traits:
    """Return traits for lesions of classes ``targets [n]``."""
    drawn = {}
    for name, row in _TRAITS.items():
        values = np.asarray(row[:-1])[targets] + row[-1] * rng.standard_normal(len(targets))
        drawn[name] = np.maximum(values, _FLOOR.get(name, 0.0)).astype(np.float32)
    return Traits(**drawn)


def draw_amounts(rng: np.random.Generator, targets: npt.NDArray[np.int64]) -> Floats:
    """Return how strongly each lesion shows each feature, ``[features, n]``; 0 where it is absent."""
    chance = np.array([row for _, row in FEATURES], dtype=np.float64)[:, targets] / 100.0
    present = rng.random(chance.shape) < chance
    return (present * rng.uniform(0.45, 1.0, chance.shape)).astype(np.float32)
