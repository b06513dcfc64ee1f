"""One batch of lesions from traits to colour: outline, pigments, features, skin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popmi_core.data.phantom.canvas import Floats, smooth_noise, uniform
from popmi_core.data.phantom.classes import FEATURES, Traits, draw_amounts, draw_traits
from popmi_core.data.phantom.layers import Layers, Stack
from popmi_core.data.phantom.lesion import Lesion, draw_lesion, draw_outline
from popmi_core.data.phantom.pigment import each, freckles

_SKIN = np.array([1.00, 0.83, 0.79], dtype=np.float32)


def draw_scene(rng: np.random.Generator, targets: npt.NDArray[np.int64], *, zoom: float, image_size: int) -> Floats:
    """Return skin with one lesion of each class in ``targets [n]``, ``[n, image_size, image_size, 3]``, 0 to 1."""
    base, *streams = rng.spawn(1 + len(FEATURES))
    traits = draw_traits(base, targets)
    outline = draw_outline(base, traits.radius * np.float32(zoom), traits.asymmetry)
    lesion = draw_lesion(base, outline, traits.irregularity, traits.softness, traits.streaks, image_size)
    stack = Stack(len(targets), image_size)
    stack.add(_ground(base, lesion, traits))
    stack.add(freckles(base, lesion, traits.sun))
    amounts = draw_amounts(base, targets)
    for (feature, _), stream, amount in zip(FEATURES, streams, amounts, strict=True):
        rows = np.flatnonzero(amount)
        if len(rows):
            stack.add(feature(stream, lesion.take(rows), amount[rows]), rows)
    return stack.colour(_skin(base, len(targets)))


def _ground(rng: np.random.Generator, lesion: Lesion, traits: Traits) -> Layers:
    """Pigment and blood of the lesion before any structure: uneven, darker towards the middle or the rim."""
    uneven = 1.0 + each(traits.variegation) * smooth_noise(rng, len(lesion), lesion.size, 0.7, 6.0)
    slope = each(uniform(rng, -0.35, 0.5, (len(lesion),))) * np.maximum(lesion.depth, 0.0)
    grain = smooth_noise(rng, len(lesion), lesion.size, 6.0, 22.0)
    body = lesion.inside * np.maximum(uneven + slope + 0.14 * grain, 0.15)
    texture = 0.028 * grain + 0.05 * smooth_noise(rng, len(lesion), lesion.size, 0.7, 3.0)
    return Layers(
        melanin=(each(traits.melanin) * body + 0.03 + texture).astype(np.float32),
        blood=(each(traits.blood) * lesion.inside * (2.0 - uneven)).astype(np.float32),
    )


def _skin(rng: np.random.Generator, count: int) -> Floats:
    """Skin of each picture, ``[n, 3]``: mostly light skin types, as in the public sets this stands in for."""
    melanin = np.abs(rng.standard_normal((count, 1))) * 0.08
    blood = np.abs(rng.standard_normal((count, 1))) * 0.10
    tone = _SKIN * np.exp(-melanin * np.array([0.52, 1.00, 1.28]) - blood * np.array([0.20, 1.00, 0.67]))
    skin: Floats = tone.astype(np.float32)
    return skin
