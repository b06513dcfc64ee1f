"""Blood in the lesion: vessels, lacunae, ulcers and the strawberry pattern.

Vessel types: Argenziano et al. 2004 (Arch. Dermatol. 140:1485). Arborising vessels and ulceration of basal cell
carcinoma: Menzies et al. 2000 (Arch. Dermatol. 136:1012). Strawberry pattern of facial actinic keratosis: Zalaudek et
al. 2006 (doi:10.1111/j.1365-2133.2006.07426.x). Red, blue and black lacunae of haemangioma and angiokeratoma: Wolf 2002
(Clin. Dermatol. 20:273), Zaballos et al. 2007 (Arch. Dermatol. 143:318).

Every function takes ``(rng, lesion, amount [n])``, amount 0 to 1, and returns what it adds to the skin.
"""

from __future__ import annotations

import numpy as np

from popmi_core.data.phantom.canvas import Floats, bend, sigmoid, smooth_noise, splat, stroke, uniform
from popmi_core.data.phantom.layers import Layers
from popmi_core.data.phantom.lesion import Lesion
from popmi_core.data.phantom.pigment import each


def arborising(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Arborising vessels: bright red stems, in focus, that branch into ever finer twigs."""
    n, stems, twigs, steps = len(lesion), 3, 5, 24
    start = lesion.outline.scatter(rng, stems, 1.0)
    inward = lesion.outline.centre[:, None, :] - start
    heading = np.arctan2(inward[..., 1], inward[..., 0]) + 0.6 * rng.standard_normal((n, stems))
    reach = lesion.outline.radius[:, None] * uniform(rng, 0.8, 1.6, (n, stems))
    stem = bend(start, heading.astype(np.float32), reach, uniform(rng, -1.6, 1.6, (n, stems)), steps)
    fork = stem[:, :, 4 : 4 + 4 * twigs : 4].reshape(n, -1, 2)
    side = np.where(uniform(rng, 0, 1, (n, stems * twigs)) < 0.5, -1, 1) * uniform(rng, 0.5, 1.1, (n, stems * twigs))
    turned = (np.repeat(heading, twigs, axis=1) + side).astype(np.float32)
    short = np.repeat(reach, twigs, axis=1) * uniform(rng, 0.2, 0.5, (n, stems * twigs))
    twig = bend(fork, turned, short, uniform(rng, -1.4, 1.4, (n, stems * twigs)), steps)
    thick = np.broadcast_to(np.linspace(0.022, 0.012, steps, dtype=np.float32), stem.shape[:3])
    thin = np.broadcast_to(np.linspace(0.012, 0.007, steps, dtype=np.float32), twig.shape[:3])
    tree = stroke(stem, thick, np.repeat(amount[:, None], stems, axis=1), lesion.size)
    tree += stroke(twig, thin, np.repeat(amount[:, None], stems * twigs, axis=1), lesion.size)
    return Layers(blood=1.1 * np.minimum(tree, 1.2))


def dotted(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Dotted and glomerular vessels: clustered red points."""
    n, count = len(lesion), 45
    sigma = uniform(rng, 0.014, 0.028, (n, count))
    points = lesion.outline.scatter(rng, count, 0.9)
    spots = splat(points, sigma, np.repeat(amount[:, None], count, axis=1), lesion.size)
    return Layers(blood=0.75 * np.minimum(spots, 1.4))


def strawberry(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Strawberry pattern: a red pseudonetwork around pale follicles with yellowish plugs."""
    n, count = len(lesion), 70
    points = lesion.outline.scatter(rng, count, 1.15)
    sigma = uniform(rng, 0.03, 0.05, (n, count))
    holes = np.minimum(splat(points, sigma, np.ones_like(sigma), lesion.size), 1.0)
    plugs = np.minimum(splat(points, 0.4 * sigma, np.ones_like(sigma), lesion.size), 1.0)
    haze = sigmoid((3.0 * (lesion.depth + 0.15)).astype(np.float32))
    cover = each(amount) * haze
    return Layers(
        blood=0.65 * cover * (1.0 - holes),
        white=0.22 * cover * holes,
        keratin=0.3 * cover * plugs,
        melanin=-0.2 * cover,
    )


def ulcer(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Ulceration: red-brown crust with an uneven edge and an orange rim."""
    where = lesion.outline.scatter(rng, 1, 0.5)
    sigma = lesion.outline.radius[:, None] * uniform(rng, 0.14, 0.3, (len(lesion), 1))
    area = splat(where, sigma, np.ones_like(sigma), lesion.size)
    area += 0.22 * smooth_noise(rng, len(lesion), lesion.size, 2.0, 9.0)
    crust, rim = sigmoid(10.0 * (area - 0.55)), sigmoid(9.0 * (area - 0.32))
    weight = each(amount)
    return Layers(blood=1.3 * weight * crust, melanin=0.45 * weight * crust, keratin=0.4 * weight * (rim - crust))


def lacunae(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Lacunae: sharply bounded round clods, red to maroon, blue-black where clotted, parted by pale septa."""
    n, count = len(lesion), 24
    points = lesion.outline.scatter(rng, count, 0.85)
    sigma = lesion.outline.radius[:, None] * uniform(rng, 0.08, 0.2, (n, count))
    clods = sigmoid(9.0 * (splat(points, sigma, np.ones_like(sigma), lesion.size) - 0.6))
    clotted = np.where(uniform(rng, 0, 1, (n,)) < 0.3, uniform(rng, 0.5, 1.6, (n,)), 0.1).astype(np.float32)
    blue = np.where(uniform(rng, 0, 1, (n,)) < 0.35, uniform(rng, 0.2, 0.6, (n,)), 0.0).astype(np.float32)
    cover = each(amount) * np.maximum(lesion.inside, 0.6 * clods)
    septa = 0.25 * cover * (1.0 - clods) * each(uniform(rng, 0.0, 1.0, (n,)))
    return Layers(
        blood=cover * (0.55 + 0.9 * clods),
        melanin=each(clotted) * cover * clods,
        deep=each(blue) * cover * clods,
        white=septa,
    )
