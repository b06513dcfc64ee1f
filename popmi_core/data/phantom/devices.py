"""How a device turns skin into a photograph: colour, light, lens, marks, noise and compression.

The devices differ as the sources of public dermoscopy sets do: in colour and light (Barata et al. 2015, Improving
dermoscopy image classification using color constancy, IEEE JBHI 19:1146) and in hair, ruler marks, gel bubbles and
dark corners (Bissoto et al. 2020, Debiasing skin lesion datasets and models? Not so fast). None copies a real device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from popmi_core.data.phantom.canvas import Floats, axis, sigmoid, splat, uniform
from popmi_core.data.phantom.pigment import each, hair

_HAIR = np.array([0.16, 0.11, 0.10], dtype=np.float32)


@dataclass(frozen=True)
class Device:
    """One acquisition system.

    Attributes:
        gains: Red, green and blue gain of its white balance.
        saturation: 1 keeps colours, 0 gives grey.
        zoom: Lesions look this much larger.
        blur: Lens blur, standard deviation in half-fields.
        vignette: Darkening in the corners, share of the light.
        tilt: Strongest light gradient across the field, share of the light.
        corners: Share of photographs with a black round aperture.
        ruler: Share with ruler marks.
        bubbles: Share with gel bubbles.
        hairy: Share with hair.
        noise: Sensor noise, standard deviation, 0 to 1 scale.
        compression: Quantisation step of the block cosine transform, 0 to 255 scale.
        photographs: Mean number of photographs per lesion.
    """

    gains: tuple[float, float, float]
    saturation: float
    zoom: float
    blur: float
    vignette: float
    tilt: float
    corners: float
    ruler: float
    bubbles: float
    hairy: float
    noise: float
    compression: float
    photographs: float


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "phantom_video": Device(
            (1.05, 0.90, 0.90), 1.15, 0.80, 0.018, 0.10, 0.08, 0.00, 0.00, 0.02, 0.15, 0.012, 6.0, 1.0
        ),
        "phantom_polarised": Device(
            (0.93, 0.94, 1.03), 0.95, 1.00, 0.006, 0.22, 0.10, 0.05, 0.03, 0.00, 0.35, 0.008, 3.0, 1.9
        ),
        "phantom_contact": Device(
            (1.08, 1.04, 1.02), 1.10, 1.12, 0.009, 0.32, 0.16, 0.08, 0.05, 0.22, 0.30, 0.010, 5.0, 1.5
        ),
        "phantom_slide": Device(
            (0.99, 0.90, 0.77), 0.95, 0.95, 0.014, 0.06, 0.06, 0.00, 0.00, 0.10, 0.20, 0.018, 2.0, 1.6
        ),
        "phantom_ruler": Device(
            (0.88, 0.90, 0.94), 0.85, 0.90, 0.010, 0.15, 0.20, 0.35, 0.40, 0.15, 0.30, 0.012, 7.0, 1.0
        ),
    }
)


def photograph(rng: np.random.Generator, scene: Floats, device: Device) -> Floats:
    """Return ``scene [n, size, size, 3]`` (0 to 1) as ``device`` records it, same shape and scale."""
    n, size = len(scene), scene.shape[1]
    picture = scene.copy()
    _hairs(rng, picture, device.hairy)
    _bubbles(rng, picture, device.bubbles)
    _ruler(rng, picture, device.ruler)
    picture = _balance(rng, picture, device)
    picture *= _light(rng, n, size, device)[..., None]
    picture = _lens(picture, device.blur)
    picture += device.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return compress(np.clip(picture, 0.0, 1.0), device.compression)


def _some(rng: np.random.Generator, count: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.flatnonzero(rng.random(count) < share)


def _hairs(rng: np.random.Generator, picture: Floats, share: float) -> None:
    rows = _some(rng, len(picture), share)
    amount = uniform(rng, 0.05, 1.0, (len(rows),)) ** 2
    tint = _HAIR + uniform(rng, 0.0, 0.25, (len(rows), 1, 1, 1)) * np.array([1.0, 0.7, 0.45], np.float32)
    cover = 0.9 * hair(rng, amount, picture.shape[1])[..., None]
    picture[rows] += cover * (tint - picture[rows])


def _bubbles(rng: np.random.Generator, picture: Floats, share: float) -> None:
    rows = _some(rng, len(picture), share)
    shape = (len(rows), 10)
    points = uniform(rng, -1.0, 1.0, (*shape, 2))
    sigma = uniform(rng, 0.015, 0.06, shape)
    shown = (uniform(rng, 0, 1, shape) < 0.6).astype(np.float32)
    size = picture.shape[1]
    ring = splat(points, sigma, shown, size) - splat(points, 0.75 * sigma, shown, size)
    lamp = uniform(rng, -np.pi, np.pi, (len(rows), 1))
    offset = np.stack([np.cos(lamp), np.sin(lamp)], axis=-1) * 0.55 * sigma[..., None]
    glint = splat((points + offset).astype(np.float32), 0.3 * sigma, shown, size)
    picture[rows] += (0.5 * glint - 0.5 * ring)[..., None]


def _ruler(rng: np.random.Generator, picture: Floats, share: float) -> None:
    rows = _some(rng, len(picture), share)
    grid = axis(picture.shape[1])
    turn = uniform(rng, -np.pi, np.pi, (len(rows), 1, 1))
    along = np.cos(turn) * grid[None, None, :] + np.sin(turn) * grid[None, :, None]
    across = np.cos(turn) * grid[None, :, None] - np.sin(turn) * grid[None, None, :]
    pitch = each(uniform(rng, 0.09, 0.16, (len(rows),)))
    edge = each(uniform(rng, 0.6, 0.85, (len(rows),)))
    tick = np.rint(along / pitch)
    reach = np.where(tick % 5 == 0, 0.22, 0.12)
    sharp = np.float32(picture.shape[1])
    mark = sigmoid((sharp * (0.018 - np.abs(along - tick * pitch))).astype(np.float32))
    mark *= sigmoid((sharp * (across - edge)).astype(np.float32))
    mark *= sigmoid((sharp * (edge + reach - across)).astype(np.float32))
    picture[rows] *= 1.0 - 0.85 * mark[..., None]


def _balance(rng: np.random.Generator, picture: Floats, device: Device) -> Floats:
    n = len(picture)
    gains = np.asarray(device.gains, np.float32) * np.exp(0.045 * rng.standard_normal((n, 3))).astype(np.float32)
    exposure = 1.04 * np.exp(0.07 * rng.standard_normal((n, 1))).astype(np.float32)
    picture = picture * (gains * exposure)[:, None, None, :]
    grey = picture.mean(axis=-1, keepdims=True)
    return np.asarray(grey + np.float32(device.saturation) * (picture - grey), dtype=np.float32)


def _light(rng: np.random.Generator, count: int, size: int, device: Device) -> Floats:
    grid = axis(size)
    turn = uniform(rng, -np.pi, np.pi, (count, 1, 1))
    slope = np.cos(turn) * grid[None, None, :] + np.sin(turn) * grid[None, :, None]
    square = grid[None, None, :] ** 2 + grid[None, :, None] ** 2
    light = 1.0 + each(uniform(rng, 0, device.tilt, (count,))) * slope
    light *= 1.0 - each(uniform(rng, 0.4, 1.4, (count,))) * device.vignette * 0.5 * square
    closed = rng.random(count) < device.corners
    aperture = each(np.where(closed, uniform(rng, 1.05, 1.3, (count,)), 9.0).astype(np.float32))
    light *= sigmoid((25.0 * (aperture - np.sqrt(square))).astype(np.float32))
    return np.asarray(light, dtype=np.float32)


def _lens(picture: Floats, blur: float) -> Floats:
    size = picture.shape[1]
    grid = axis(size)
    kernel = np.exp(-((grid[:, None] - grid[None, :]) ** 2) / (2 * blur**2))
    # Rows sum to one, so that the frame's edge does not darken.
    kernel = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    n = len(picture)
    rows = np.matmul(kernel, picture.reshape(n, size, size * 3)).reshape(n, size, size, 3)
    return np.asarray(np.matmul(kernel, rows), dtype=np.float32)


def compress(picture: Floats, step: float) -> Floats:
    """Return ``picture [n, size, size, 3]`` (0 to 1) after 8x8 block cosine quantisation, as JPEG does.

    One table for all channels, ``step * (1 + (u + v) / 2)`` grey levels, the same along both axes so that a quarter
    turn of the picture is compressed alike (ITU-T T.81 leaves the table free).
    """
    n, size = len(picture), picture.shape[1]
    pad = -size % 8
    first = pad // 2
    border = (first, pad - first)
    padded = np.pad(picture, ((0, 0), border, border, (0, 0)), mode="edge")
    side = (size + pad) // 8
    blocks = padded.reshape(n, side, 8, side, 8, 3).transpose(0, 1, 3, 5, 2, 4)
    order = np.arange(8)
    cosine = np.sqrt(2 / 8) * np.cos(np.pi * (order[None, :] + 0.5) * order[:, None] / 8)
    cosine[0] /= np.sqrt(2)
    cosine = cosine.astype(np.float32)
    table = (step / 255 * (1 + (order[:, None] + order[None, :]) / 2)).astype(np.float32)
    kept = np.rint(np.matmul(np.matmul(cosine, blocks), cosine.T) / table) * table
    plain = np.matmul(np.matmul(cosine.T, kept), cosine)
    whole = plain.transpose(0, 1, 4, 2, 5, 3).reshape(n, size + pad, size + pad, 3)
    return np.asarray(whole[:, first : first + size, first : first + size], dtype=np.float32)
