"""Pigmented structures of dermoscopy, each drawn into a batch of lesions.

Definitions: Argenziano et al. 2003 (doi:10.1067/mjd.2003.281) and the standardised terms of Kittler et al. 2016
(doi:10.1016/j.jaad.2015.12.038); blue-grey ovoid nests and leaf-like areas: Menzies et al. 2000
(Arch. Dermatol. 136:1012); ridges and fissures: Braun et al. 2002 (doi:10.1001/archderm.138.12.1556).

Every function takes ``(rng, lesion, amount [n])``, amount 0 to 1, and returns what it adds to the skin.
"""

from __future__ import annotations

import numpy as np

from popmi_core.data.phantom.canvas import Floats, bend, sigmoid, smooth_noise, splat, stroke, uniform
from popmi_core.data.phantom.layers import Layers
from popmi_core.data.phantom.lesion import Lesion


def each(values: Floats) -> Floats:
    """Return per-picture ``values [n]`` as ``[n, 1, 1]``, to weigh maps."""
    return values[:, None, None]


def network(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Typical pigment network: thin brown lines around pale holes, fading at the edge."""
    lines = np.maximum(1.0 - 1.8 * np.abs(smooth_noise(rng, len(lesion), lesion.size, 13.0, 18.0)), -0.35) + 0.25
    fade = sigmoid((6.0 * (0.75 - lesion.depth)).astype(np.float32))
    return Layers(melanin=(0.5 * each(amount) * lesion.inside * fade * lines).astype(np.float32))


def atypical_network(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Atypical network: wide, dark, uneven meshes in a part of the lesion that ends abruptly."""
    lines = np.maximum(1.0 - 1.4 * np.abs(smooth_noise(rng, len(lesion), lesion.size, 6.0, 11.0)), 0.0)
    part = sigmoid(5.0 * smooth_noise(rng, len(lesion), lesion.size, 0.5, 2.0))
    return Layers(melanin=(1.1 * each(amount) * lesion.inside * part * lines).astype(np.float32))


def globules(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Dots and globules: round brown to black spots of uneven size."""
    count = 40
    present = uniform(rng, 0.0, 1.0, (len(lesion), count)) < uniform(rng, 0.3, 1.0, (len(lesion), 1))
    sigma = uniform(rng, 0.016, 0.042, (len(lesion), count))
    height = (present * uniform(rng, 0.5, 1.6, (len(lesion), count))).astype(np.float32)
    spots = splat(lesion.outline.scatter(rng, count, 0.98), sigma, height * amount[:, None], lesion.size)
    return Layers(melanin=spots)


def blotch(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Irregular blotch: structureless dark area off the centre."""
    where = lesion.outline.scatter(rng, 2, 0.75)
    sigma = lesion.outline.radius[:, None] * uniform(rng, 0.18, 0.4, (len(lesion), 2))
    area = splat(where, sigma, np.ones_like(sigma), lesion.size)
    edge = sigmoid(6.0 * (area - 0.5 + 0.18 * smooth_noise(rng, len(lesion), lesion.size, 2.0, 8.0)))
    return Layers(melanin=1.5 * each(amount) * lesion.inside * edge)


def veil(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Blue-white veil: confluent blue over raised pigment with a whitish ground-glass haze."""
    where = lesion.outline.scatter(rng, 1, 0.6)
    sigma = lesion.outline.radius[:, None] * uniform(rng, 0.3, 0.65, (len(lesion), 1))
    area = splat(where, sigma, np.ones_like(sigma), lesion.size)
    area = sigmoid(5.0 * (area - 0.5 + 0.25 * smooth_noise(rng, len(lesion), lesion.size, 1.0, 5.0)))
    cover = each(amount) * lesion.inside * area
    return Layers(melanin=0.1 * cover, deep=1.0 * cover, white=0.18 * cover)


def regression(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Regression: white scar-like areas without pigment, peppered with fine blue-grey granules."""
    area = sigmoid(5.0 * smooth_noise(rng, len(lesion), lesion.size, 0.8, 3.0) - 1.5) * lesion.inside
    where = lesion.outline.scatter(rng, 60, 0.9)
    sigma = uniform(rng, 0.012, 0.022, (len(lesion), 60))
    pepper = splat(where, sigma, np.full_like(sigma, 0.8) * amount[:, None], lesion.size) * area
    cover = each(amount) * area
    return Layers(melanin=-0.9 * cover, blood=0.12 * cover, white=0.3 * cover, deep=pepper)


def ridges(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Fissures and ridges: a cerebriform pattern of wide folds over a stuck-on plaque."""
    folds = np.tanh(2.5 * smooth_noise(rng, len(lesion), lesion.size, 3.5, 6.0))
    return Layers(melanin=0.35 * each(amount) * lesion.inside * folds)


def leaves(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Leaf-like areas: brown to grey-blue bulbs joined at a base near the border, no network."""
    n, count = len(lesion), 7
    base = lesion.outline.scatter(rng, 2, 0.8)
    turn = uniform(rng, -np.pi, np.pi, (n, 2, 1)) + uniform(rng, -1.1, 1.1, (n, 2, count))
    start = np.repeat(base, count, axis=1)
    length = uniform(rng, 0.08, 0.22, (n, 2 * count))
    paths = bend(start, turn.reshape(n, -1), length, uniform(rng, -0.6, 0.6, (n, 2 * count)), 6)
    sigma = np.broadcast_to(np.linspace(0.018, 0.045, 6, dtype=np.float32), paths.shape[:3])
    bulbs = splat(paths.reshape(n, -1, 2), sigma.reshape(n, -1), np.full((n, 12 * count), 0.6, np.float32), lesion.size)
    bulbs = np.minimum(bulbs, 1.0) * each(amount)
    return Layers(melanin=0.85 * bulbs, deep=0.4 * bulbs)


def nests(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Large blue-grey ovoid nests and smaller globules, well set off from the pink tumour."""
    n, count = len(lesion), 9
    present = uniform(rng, 0.0, 1.0, (n, count)) < uniform(rng, 0.25, 0.9, (n, 1))
    start = lesion.outline.scatter(rng, count, 0.85)
    length = uniform(rng, 0.02, 0.1, (n, count))
    paths = bend(start, uniform(rng, -np.pi, np.pi, (n, count)), length, np.zeros_like(length), 3)
    sigma = np.repeat(uniform(rng, 0.03, 0.085, (n, count)), 3, axis=1)
    height = np.repeat(0.6 * present * amount[:, None], 3, axis=1).astype(np.float32)
    ovals = np.minimum(splat(paths.reshape(n, -1, 2), sigma, height, lesion.size), 1.0)
    return Layers(melanin=0.45 * ovals, deep=0.7 * ovals)


def freckles(rng: np.random.Generator, lesion: Lesion, amount: Floats) -> Layers:
    """Sun-damaged skin around any lesion: blotchy brown and red."""
    noise = smooth_noise(rng, len(lesion), lesion.size, 1.5, 9.0)
    red = smooth_noise(rng, len(lesion), lesion.size, 1.0, 6.0)
    spots = np.maximum(noise, -0.8) * each(amount)
    return Layers(melanin=0.1 * spots, blood=0.08 * each(amount) * red)


def hair(rng: np.random.Generator, amount: Floats, size: int) -> Floats:
    """Return the cover by hairs, ``[n, size, size]``; ``amount [n]`` 0 to 1 sets how many there are."""
    n, count, steps = len(amount), 14, 90
    start = uniform(rng, -1.3, 1.3, (n, count, 2))
    main = uniform(rng, -np.pi, np.pi, (n, 1)) + 0.45 * rng.standard_normal((n, count))
    length = uniform(rng, 0.5, 2.4, (n, count))
    paths = bend(start, main.astype(np.float32), length, uniform(rng, -1.3, 1.3, (n, count)), steps)
    sigma = np.repeat(uniform(rng, 0.004, 0.009, (n, count, 1)), steps, axis=2)
    shown = uniform(rng, 0.0, 1.0, (n, count)) < amount[:, None]
    return np.minimum(stroke(paths, sigma, shown.astype(np.float32), size), 1.0)
