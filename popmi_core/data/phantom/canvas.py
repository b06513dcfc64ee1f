"""Drawing primitives of the phantom: a unit field, isotropic noise and soft spots, for many images at once.

The field is the square [-1, 1] x [-1, 1]; lengths are in half-fields, frequencies in cycles per field.
Random draws never depend on the number of pixels, so one seed shows the same lesion at every image size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

_PERIOD = 1.5  # fields; noise repeats only outside the picture


def axis(size: int) -> Floats:
    """Return the pixel centres of one axis, ``[size]``, in half-fields."""
    centres = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    return centres.astype(np.float32)


def uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> Floats:
    """Return uniform draws of ``shape`` between ``low`` and ``high``."""
    return rng.uniform(low, high, shape).astype(np.float32)


def sigmoid(values: Floats) -> Floats:
    """Return ``1 / (1 + exp(-values))`` without overflow, same shape."""
    risen: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + np.float32(1.0))
    return risen


@lru_cache(maxsize=64)
def _basis(size: int, orders: int) -> Floats:
    """Return cosines and sines of 0..orders waves per period at the pixel centres, ``[size, 2 * orders + 1]``."""
    phase = math.pi / _PERIOD * np.outer(axis(size), np.arange(orders + 1))
    waves: Floats = np.concatenate([np.cos(phase), np.sin(phase[:, 1:])], axis=1).astype(np.float32)
    waves.setflags(write=False)
    return waves


@lru_cache(maxsize=64)
def _spectrum(low: float, high: float) -> tuple[int, Floats]:
    """Return the number of orders and the amplitude of every pair of waves, unit variance in sum."""
    orders = math.ceil(high * _PERIOD * 1.3)
    index = np.concatenate([np.arange(orders + 1), np.arange(1, orders + 1)]) / _PERIOD
    radius = np.hypot(index[:, None], index[None, :])
    # A ring with soft edges; it depends on the radius alone, so the noise has no direction.
    power = np.exp(-((np.maximum(radius - high, 0) / (0.15 * high)) ** 2))
    power *= np.exp(-((np.maximum(low - radius, 0) / (0.15 * high)) ** 2)) / np.maximum(radius, 0.5)
    power[0, 0] = 0.0
    share = np.where(index == 0, 1.0, 0.5)  # mean of cos**2 over the period
    power *= 1.0 / math.sqrt(float((power**2 * share[:, None] * share[None, :]).sum()))
    amplitude = power.astype(np.float32)
    amplitude.setflags(write=False)
    return orders, amplitude


def smooth_noise(rng: np.random.Generator, count: int, size: int, low: float, high: float) -> Floats:
    """Return isotropic Gaussian noise of variance one, ``[count, size, size]``.

    Random Fourier synthesis (Shinozuka and Deodatis 1996, Appl. Mech. Rev. 49:29) between ``low`` and ``high``
    cycles per field; waves finer than two pixels are left out, so small images lose detail as a camera does.
    """
    orders, amplitude = _spectrum(low, high)
    draws = rng.standard_normal((count, *amplitude.shape), dtype=np.float32) * amplitude
    basis = _basis(size, orders)
    waves = np.concatenate([np.arange(orders + 1), np.arange(1, orders + 1)]) / _PERIOD
    basis = basis * (waves < size / 2).astype(np.float32)
    noise: Floats = basis @ draws @ basis.T
    return noise


def splat(points: Floats, sigma: Floats, weight: Floats, size: int) -> Floats:
    """Return the sum of Gaussian spots of every image, ``[n, size, size]``.

    ``points [n, k, 2]`` holds (x, y), ``sigma [n, k]`` the radius in half-fields, ``weight [n, k]`` the height at
    the centre. A spot narrower than half a pixel is widened and dimmed alike. A Gaussian is the product of its two
    axes, which makes the sum one matrix product per image.
    """
    floor = np.float32(1.0 / size)
    wide = np.sqrt(sigma**2 + (0.5 * floor) ** 2).astype(np.float32)
    height = weight * (sigma / wide)
    centres = axis(size)
    scale = (np.float32(0.5) / wide**2)[..., None]
    across = np.exp(-((centres - points[..., 0:1]) ** 2) * scale)
    down = np.exp(-((centres - points[..., 1:2]) ** 2) * scale)
    drawn: Floats = np.matmul((down * height[..., None]).transpose(0, 2, 1), across)
    return drawn


def stroke(points: Floats, sigma: Floats, weight: Floats, size: int) -> Floats:
    """Return soft lines of even darkness along chains of points, ``[n, size, size]``, at most about one.

    ``points [n, lines, steps, 2]``, ``sigma [n, lines, steps]`` and ``weight [n, lines]``. Spots are weighted by
    their spacing over their width, so that the height along the line is ``weight`` whatever the sampling.
    """
    n, lines, steps, _ = points.shape
    step = 0.5 * np.linalg.norm(np.diff(points, axis=2), axis=-1)
    spacing = np.zeros((n, lines, steps), np.float32)
    spacing[:, :, 1:] += step
    spacing[:, :, :-1] += step  # each spot stands for half of either neighbour's gap
    heights = weight[:, :, None] * spacing / (math.sqrt(2 * math.pi) * np.maximum(sigma, 1e-4))
    flat = lines * steps
    return splat(
        points.reshape(n, flat, 2),
        sigma.reshape(n, flat),
        heights.reshape(n, flat).astype(np.float32),
        size,
    )


def bend(start: Floats, heading: Floats, length: Floats, curl: Floats, steps: int) -> Floats:
    """Return arcs ``[n, lines, steps, 2]`` leaving ``start [n, lines, 2]`` at ``heading`` (radians).

    ``length`` is in half-fields and ``curl`` the change of heading over the whole arc, all ``[n, lines]``.
    """
    along = np.linspace(0.0, 1.0, steps, dtype=np.float32)
    angle = heading[..., None] + curl[..., None] * along
    step = (length / (steps - 1))[..., None, None]
    moves = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * step
    path = np.cumsum(moves, axis=2) - moves[:, :, :1]
    arcs: Floats = (start[:, :, None, :] + path).astype(np.float32)
    return arcs
