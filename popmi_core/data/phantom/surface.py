"""Keratin, cysts, scars and scale on or near the surface.

Milia-like cysts and comedo-like openings of seborrhoeic keratosis: Braun et al. 2002
(doi:10.1001/archderm.138.12.1556). Central white patch with a delicate ring of network in dermatofibroma: Zaballos et
al. 2008 (doi:10.1001/archdermatol.2007.8). White to yellow scale of actinic keratosis: Zalaudek et al. 2006
(doi:10.1111/j.1365-2133.2006.07426.x).

Every function takes ``(rng, lesion, amount [n])``, amount 0 to 1, and returns what it adds to the skin.
"""

from __future__ import annotations

import numpy as np

from popmi_core.data.phantom.canvas import Floats, sigmoid, smooth_noise, splat, uniform
from popmi_core.data.phantom.layers import Layers
from popmi_core.data.phantom.lesion import Lesion
from popmi_core.data.phantom.pigment import each


def milia(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Milia-like cysts: bright round spots, some glowing like stars."""
    n, count = len(lesion), 14
    present = uniform(rng, 0.0, 1.0, (n, count)) < uniform(rng, 0.25, 1.0, (n, 1))
    points = lesion.outline.scatter(rng, count, 0.85)
    sigma = uniform(rng, 0.015, 0.04, (n, count))
    height = (present * amount[:, None]).astype(np.float32)
    spots = splat(points, sigma, height, lesion.size) + 0.25 * splat(points, 2.2 * sigma, height, lesion.size)
    return Layers(white=0.8 * np.minimum(spots, 1.1))


def comedos(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Comedo-like openings: dark brown plugs with a paler yellow rim."""
    n, count = len(lesion), 12
    present = uniform(rng, 0.0, 1.0, (n, count)) < uniform(rng, 0.25, 1.0, (n, 1))
    points = lesion.outline.scatter(rng, count, 0.85)
    sigma = uniform(rng, 0.02, 0.042, (n, count))
    height = (present * amount[:, None]).astype(np.float32)
    plug = np.minimum(splat(points, sigma, height, lesion.size), 1.2)
    rim = np.minimum(splat(points, 1.8 * sigma, height, lesion.size), 1.0)
    return Layers(melanin=1.2 * plug, keratin=0.4 * np.maximum(rim - plug, 0.0))


def scar(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Central white patch with a peripheral delicate network."""
    reach = each(uniform(rng, 0.35, 0.65, (len(lesion),)))
    rough = lesion.depth + 0.12 * smooth_noise(rng, len(lesion), lesion.size, 1.5, 6.0)
    patch = sigmoid((9.0 * (rough - reach)).astype(np.float32)) * each(amount)
    ring = lesion.inside * (1.0 - patch) * each(amount)
    lines = 1.0 - 1.8 * np.abs(smooth_noise(rng, len(lesion), lesion.size, 9.0, 13.0))
    return Layers(white=0.55 * patch, melanin=0.25 * ring * (1.0 + lines) - 0.35 * patch, blood=0.2 * ring)


def scale(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Scale: ragged white to yellow flakes."""
    n = len(lesion)
    where = sigmoid(4.0 * smooth_noise(rng, n, lesion.size, 1.0, 4.0) - 1.0)
    flakes = sigmoid(4.0 * smooth_noise(rng, n, lesion.size, 5.0, 16.0) - 1.5)
    cover = each(amount) * lesion.inside * where * flakes
    yellow = each(uniform(rng, 0.1, 0.7, (n,)))
    return Layers(white=0.85 * cover * (1.0 - 0.5 * yellow), keratin=cover * yellow)
