"""A whole phantom site: class counts, lesions, photographs, lesion-disjoint splits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from popmi_core.data.images import ImageSet, SiteData
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.phantom.devices import DEVICES, Device, photograph
from popmi_core.data.phantom.scene import draw_scene
from popmi_core.errors import DataError

PHANTOM_SITES: tuple[str, ...] = tuple(DEVICES)
SPLITS: tuple[str, ...] = ("train", "val", "test")

# Images per thousand in the order of DERMOSCOPY_CLASSES: every site has its own skew, some classes are missing.
SHARES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "phantom_video": (0, 0, 45, 15, 15, 900, 25),
        "phantom_polarised": (15, 65, 140, 20, 200, 530, 30),
        "phantom_contact": (130, 135, 215, 15, 150, 350, 5),
        "phantom_slide": (0, 15, 30, 10, 150, 780, 15),
        "phantom_ruler": (0, 0, 230, 0, 265, 505, 0),
    }
)
_BATCH = 64  # lesions drawn together; fixed, because it decides which random numbers a lesion gets


@dataclass(frozen=True, eq=False)
class Drawn:
    """The photographs of a site before they are divided.

    Attributes:
        images: ``uint8 [n, size, size, 3]``.
        targets: ``int64 [n]``, index into DERMOSCOPY_CLASSES.
        lesions: ``int64 [n]``, which lesion a photograph shows.
        splits: ``int64 [n]``, index into SPLITS; all photographs of a lesion share it.
    """

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]
    lesions: npt.NDArray[np.int64]
    splits: npt.NDArray[np.int64]


def make_phantom_site(site: str, *, num_images: int, image_size: int, seed: int) -> SiteData:
    """Return the images of one phantom site, divided 70/10/20 inside every class, no lesion in two splits.

    The same arguments give the same bytes, whatever other sites are drawn. ``external`` is empty. A class with one
    lesion has it in train, with two in train and test, from three on in all three.

    Raises:
        DataError: If the site is not in PHANTOM_SITES, or there are fewer than 10 images or 8 pixels a side.
    """
    drawn = draw_site(site, num_images=num_images, image_size=image_size, seed=seed)
    whole = ImageSet(drawn.images, drawn.targets)
    train, val, test = (whole.subset(drawn.splits == split) for split in range(len(SPLITS)))
    return SiteData(site, DERMOSCOPY_CLASSES, train, val, test, ImageSet.empty(image_size), phantom=True)


def draw_examples(site: str, targets: npt.NDArray[np.int64], *, image_size: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return one picture per class asked for in ``targets [n]``, ``uint8 [n, size, size, 3]``.

    For looking at the phantom: any class at any site, whether or not the site has it.

    Raises:
        DataError: If the site is not in PHANTOM_SITES.
    """
    device = find_device(site)
    stream, camera = _stream(seed, site, 2).spawn(2)
    return _expose(camera, draw_scene(stream, targets, zoom=device.zoom, image_size=image_size), device)


def draw_site(site: str, *, num_images: int, image_size: int, seed: int) -> Drawn:
    """Return all photographs of one phantom site with lesion and split; raises as make_phantom_site."""
    device = find_device(site)
    if num_images < 10 or image_size < 8:
        raise DataError(
            f"site {site}: the phantom needs at least 10 images of at least 8 pixels a side, got {num_images} of "
            f"{image_size}. Raise phantom_images or image_size."
        )
    targets, photographs, splits = _plan(_stream(seed, site, 0), site, num_images, device.photographs)
    images = []
    for batch, start in enumerate(range(0, len(targets), _BATCH)):
        rows = slice(start, start + _BATCH)
        stream, camera = _stream(seed, site, 1, batch).spawn(2)
        scenes = draw_scene(stream, targets[rows], zoom=device.zoom, image_size=image_size)
        scenes = _turn(camera, np.repeat(scenes, photographs[rows], axis=0))
        images.append(_expose(camera, scenes, device))
    lesions = np.repeat(np.arange(len(targets)), photographs)
    return Drawn(np.concatenate(images), targets[lesions], lesions, splits[lesions])


def count_classes(site: str, num_images: int) -> npt.NDArray[np.int64]:
    """Return images per class of ``site``, ``[7]``: its shares rounded by largest remainder."""
    exact = np.asarray(SHARES[site], dtype=np.float64) * num_images / 1000
    counts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: num_images - counts.sum()]] += 1
    return counts


def find_device(site: str) -> Device:
    """Return the device of a phantom site.

    Raises:
        DataError: If the site is not in PHANTOM_SITES.
    """
    if site not in DEVICES:
        raise DataError(f"there is no phantom site {site!r}. Choose from: {', '.join(PHANTOM_SITES)}.")
    return DEVICES[site]


def _stream(seed: int, site: str, *purpose: int) -> np.random.Generator:
    """Return the random numbers of one site for one purpose; crc32, since a new site must not change the others."""
    return np.random.default_rng([seed, zlib.crc32(site.encode()), *purpose])


def _expose(rng: np.random.Generator, scenes: npt.NDArray[np.float32], device: Device) -> npt.NDArray[np.uint8]:
    """Return the photographs as bytes."""
    bright = 255 * np.clip(photograph(rng, scenes, device), 0.0, 1.0)
    exposed: npt.NDArray[np.uint8] = np.rint(bright).astype(np.uint8)
    return exposed


def _plan(
    rng: np.random.Generator, site: str, num_images: int, mean: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return class, number of photographs and split of every lesion, in random order, each ``[lesions]``."""
    columns: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for target, total in enumerate(count_classes(site, num_images)):
        lesions = max(round(total / mean), min(total, 3))
        times = np.full(lesions, total // max(lesions, 1))
        times[: total - times.sum()] += 1
        parts = np.full(lesions, target), rng.permutation(times), rng.permutation(_divide(lesions))
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    targets, photographs, splits = (np.concatenate(column).astype(np.int64) for column in columns)
    order = rng.permutation(len(targets))
    return targets[order], photographs[order], splits[order]


def _divide(lesions: int) -> npt.NDArray[np.int64]:
    """Return the split of every lesion of one class, 70/10/20, test before val where there are few."""
    test = max(round(0.2 * lesions), 1) if lesions > 1 else 0
    val = max(round(0.1 * lesions), 1) if lesions > 2 else 0
    return np.repeat(np.arange(3), [lesions - val - test, val, test])


def _turn(rng: np.random.Generator, scenes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return every scene turned by a random quarter: the camera is held anyhow."""
    quarters = rng.integers(0, 4, len(scenes))
    turned = scenes.copy()
    for quarter in range(1, 4):
        rows = np.flatnonzero(quarters == quarter)
        turned[rows] = np.rot90(scenes[rows], quarter, axes=(1, 2))
    return turned
