"""What lies in the skin, and the colour it gives: a two-pigment absorption model with scattering on top.

Skin colour as Beer-Lambert absorption by melanin and haemoglobin follows Tsumura et al. 1999
(doi:10.1364/JOSAA.16.002169) and Claridge et al. 2003 (Med. Image Anal. 7:489): melanin near the surface is
brown to black; the same melanin deep in the dermis looks blue-grey (Tyndall effect). Constants are chosen by eye.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from popmi_core.data.phantom.canvas import Floats

_MELANIN = np.array([0.52, 1.00, 1.28], dtype=np.float32)  # absorbance per unit, red green blue
_BLOOD = np.array([0.20, 1.00, 0.67], dtype=np.float32)
_BLUE_GREY = np.array([0.40, 0.43, 0.55], dtype=np.float32)
_WHITE = np.array([0.97, 0.92, 0.90], dtype=np.float32)
_KERATIN = np.array([0.86, 0.66, 0.38], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Layers:
    """Amounts per pixel, each ``[n, size, size]`` or a plain 0 where a feature does not touch it.

    Attributes:
        melanin: Surface pigment, absorbance units; may be negative where a feature removes pigment.
        blood: Haemoglobin, absorbance units.
        deep: Cover by blue-grey deep pigment, 0 to 1.
        white: Cover by scar, cyst or scale, 0 to 1.
        keratin: Cover by yellow keratin, 0 to 1.
    """

    melanin: Floats | float = 0.0
    blood: Floats | float = 0.0
    deep: Floats | float = 0.0
    white: Floats | float = 0.0
    keratin: Floats | float = 0.0


class Stack:
    """Sums the layers of a batch of pictures, feature by feature."""

    def __init__(self, count: int, size: int) -> None:
        self._sums = {field.name: np.zeros((count, size, size), np.float32) for field in fields(Layers)}

    def add(self, layers: Layers, rows: npt.NDArray[np.int64] | slice = slice(None)) -> None:
        """Add ``layers`` to the pictures at ``rows``."""
        for name, total in self._sums.items():
            amount = getattr(layers, name)
            if isinstance(amount, np.ndarray):
                total[rows] += amount

    def colour(self, skin: Floats) -> Floats:
        """Return what a camera sees of ``skin [n, 3]`` under these layers, ``[n, size, size, 3]``, 0 to 1."""
        sums = self._sums
        melanin = np.maximum(sums["melanin"], 0.0)[..., None] * _MELANIN
        absorbed = melanin + np.maximum(sums["blood"], 0.0)[..., None] * _BLOOD
        seen = skin[:, None, None, :] * np.exp(-absorbed)
        for name, tint in (("deep", _BLUE_GREY), ("keratin", _KERATIN), ("white", _WHITE)):
            cover = np.clip(sums[name], 0.0, 0.92)[..., None]
            # Half of the brightness below shines through: a cover is no paint.
            shade = 0.5 + 0.5 * seen.mean(axis=-1, keepdims=True) / 0.6
            seen += cover * (tint * np.minimum(shade, 1.1) - seen)
        return np.asarray(seen, dtype=np.float32)
