"""The outline of a lesion: size, elongation, asymmetry and an irregular, sharp or fading border.

Asymmetry and border are the A and B of the ABCD rule (Nachbar et al. 1994, J. Am. Acad. Dermatol. 30:551);
streaks and pseudopods at the edge follow the consensus definitions (Argenziano et al. 2003,
doi:10.1067/mjd.2003.281).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from popmi_core.data.phantom.canvas import Floats, axis, sigmoid, smooth_noise, uniform

_LOBES = 5


@dataclass(frozen=True, eq=False)
class Outline:
    """Numbers that fix the contours of ``n`` lesions; the radius is a short Fourier series of the angle.

    Attributes:
        centre: ``[n, 2]`` (x, y) in half-fields.
        radius: ``[n]`` mean radius in half-fields.
        lobes: ``[n, 5]`` relative amplitudes of one to five waves around the contour.
        phases: ``[n, 5]`` their phases in radians, uniform: no lesion knows which way is up.
    """

    centre: Floats
    radius: Floats
    lobes: Floats
    phases: Floats

    def radius_at(self, angle: Floats) -> Floats:
        """Return the contour's radius at ``angle [n, ...]`` (radians), same shape, in half-fields."""
        shape = (-1,) + (1,) * (angle.ndim - 1)
        relative = np.ones_like(angle)
        for wave in range(_LOBES):
            phase = self.phases[:, wave].reshape(shape)
            relative += self.lobes[:, wave].reshape(shape) * np.cos((wave + 1) * angle - phase)
        grown: Floats = self.radius.reshape(shape) * np.maximum(relative, np.float32(0.35))
        return grown

    def place(self, depth: Floats, angle: Floats) -> Floats:
        """Return points ``[n, k, 2]``; ``depth [n, k]`` is 1 at the centre, 0 at the contour, negative outside."""
        distance = (1.0 - depth) * self.radius_at(angle)
        offset = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * distance[..., None]
        points: Floats = (self.centre[:, None, :] + offset).astype(np.float32)
        return points

    def scatter(self, rng: np.random.Generator, count: int, reach: float = 0.9) -> Floats:
        """Return ``[n, count, 2]`` points spread evenly over the part of the lesion inside ``reach``."""
        shape = (len(self.radius), count)
        depth = 1.0 - reach * np.sqrt(uniform(rng, 0.0, 1.0, shape))
        return self.place(depth, uniform(rng, -np.pi, np.pi, shape))


@dataclass(frozen=True, eq=False)
class Lesion:
    """Lesions drawn as maps; rows go together.

    Attributes:
        outline: The contours.
        angle: ``[n, size, size]`` radians around the centre.
        depth: ``[n, size, size]`` 1 at the centre, 0 at the border, negative outside.
        inside: ``[n, size, size]`` how much a pixel belongs to the lesion, 0 to 1.
    """

    outline: Outline
    angle: Floats
    depth: Floats
    inside: Floats

    @property
    def size(self) -> int:
        """Pixels per side."""
        return int(self.depth.shape[-1])

    def __len__(self) -> int:
        return len(self.depth)

    def take(self, rows: npt.NDArray[np.int64]) -> Lesion:
        """Return the lesions at ``rows``."""
        outline = replace(
            self.outline, **{field.name: getattr(self.outline, field.name)[rows] for field in fields(Outline)}
        )
        return Lesion(outline, self.angle[rows], self.depth[rows], self.inside[rows])


def draw_outline(rng: np.random.Generator, radius: Floats, asymmetry: Floats) -> Outline:
    """Return contours of mean ``radius [n]`` whose lobes grow with ``asymmetry [n]`` (0 round, 0.3 strongly lobed)."""
    count = len(radius)
    fall = np.array([0.5, 1.0, 0.7, 0.45, 0.3], dtype=np.float32)
    lobes = rng.standard_normal((count, _LOBES)).astype(np.float32) * fall * asymmetry[:, None]
    # Elongation without asymmetry: most naevi are ovals.
    lobes[:, 1] += uniform(rng, 0.0, 0.16, (count,))
    centre = (rng.standard_normal((count, 2)) * 0.08).astype(np.float32)
    return Outline(centre, radius, np.clip(lobes, -0.5, 0.5), uniform(rng, -np.pi, np.pi, (count, _LOBES)))


def draw_lesion(
    rng: np.random.Generator, outline: Outline, irregularity: Floats, softness: Floats, streaks: Floats, size: int
) -> Lesion:
    """Return the lesions as maps of ``size`` pixels square.

    ``irregularity [n]`` frays the border, ``softness [n]`` is its width as a share of the radius, ``streaks [n]``
    (0 to 1) pushes radial projections out of one side.
    """
    count = len(outline.radius)
    grid = axis(size)
    x = grid[None, None, :] - outline.centre[:, 0, None, None]
    y = grid[None, :, None] - outline.centre[:, 1, None, None]
    angle = np.arctan2(y, x).astype(np.float32)
    depth = 1.0 - np.hypot(x, y) / outline.radius_at(angle)
    depth += irregularity[:, None, None] * smooth_noise(rng, count, size, 1.0, 6.0)
    number, phase = uniform(rng, 14, 24, (count, 1, 1)).round(), uniform(rng, -np.pi, np.pi, (count, 1, 1))
    rays = np.maximum(np.cos(number * angle + phase), 0.0) ** 2
    side = np.maximum(np.cos(angle - uniform(rng, -np.pi, np.pi, (count, 1, 1))) + 0.2, 0.0)
    depth += 0.3 * streaks[:, None, None] * rays * side
    inside = sigmoid((depth / (0.25 * softness[:, None, None])).astype(np.float32))
    return Lesion(outline, angle, depth.astype(np.float32), inside)
