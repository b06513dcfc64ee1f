"""The images of the studies: rotated digits, blood cells, skin lesions; all from the folder POPMI_DATA."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from popmi_core.data import ImageSet, load_site, locate
from popmi_core.equivariance.turning import soft_disk

DIGITS = "rotated_mnist_rebuilt_28.npz"
BLOOD = "bloodmnist_rebuilt_28.npz"
DERMOSCOPY_SIZE, DERMOSCOPY_NATIVE = 64, 128


@dataclass(frozen=True, eq=False)
class Images:
    """One data set.

    Attributes:
        name: Key of ``LOADERS``.
        num_classes: Width of the logits.
        image_size: Pixels per side that models are trained on.
        train: Images trained on.
        val: Images that choose the epoch.
        test: Images only ever evaluated.
        native: The test images at the highest resolution there is, in the order of ``test``: these are turned.
    """

    name: str
    num_classes: int
    image_size: int
    train: ImageSet
    val: ImageSet
    test: ImageSet
    native: ImageSet

    @cached_property
    def outside(self) -> tuple[float, ...]:
        """Return the mean colour of the training images beyond the disk of radius half a side."""
        beyond = soft_disk(self.image_size).numpy() == 0
        return tuple(float(value) for value in self.train.images[:, beyond].mean(axis=(0, 1)))


def data_folder() -> Path:
    """Return the folder that POPMI_DATA names; studies of real images run on nothing else."""
    named = os.environ.get("POPMI_DATA", "").strip()
    if not named:
        raise SystemExit("POPMI_DATA is not set. Let it name the folder of the real images.")
    return Path(named)


@lru_cache
def load(name: str) -> Images:
    """Return a data set by name; it is kept in memory."""
    return LOADERS[name]()


def subset(data: ImageSet, count: int, seed: int) -> tuple[ImageSet, np.ndarray]:
    """Return ``count`` images drawn once by ``seed`` (all, if there are fewer), and their positions in order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:count])
    return data.subset(chosen), chosen


def share(data: ImageSet, part: float, num_classes: int) -> ImageSet:
    """Return the same ``part`` of every class, the images whose hash comes first: a larger part holds a smaller one."""
    keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in data.images]
    chosen: list[int] = []
    for label in range(num_classes):
        mine = sorted(np.flatnonzero(data.targets == label), key=lambda position: keys[position])
        chosen += mine[: max(1, round(part * len(mine)))]
    return data.subset(np.sort(np.array(chosen, np.int64)))


def rotated_digits() -> Images:
    """Return rotated MNIST as it is: 10,000, 2,000 and 50,000 digits, each at its own random angle."""
    site = load_site("digits", str(data_folder() / DIGITS), image_size=28, phantom_images=0, seed=0)
    return Images("rotated_mnist", 10, 28, site.train, site.val, site.test, site.test)


def upright_digits() -> Images:
    """Return the same digits turned back by their known angle (bicubic); those of test stay turned.

    Interpolated twice, so a little softer than MNIST itself; the digits and the splits are those of rotated MNIST.
    """
    turned = rotated_digits()
    with np.load(data_folder() / DIGITS, allow_pickle=False) as archive:
        angles = {split: archive[f"{split}_angle"] for split in ("train", "val")}
    train, val = (
        ImageSet(np.stack([_turned_back(image, -angle) for image, angle in zip(one.images, known, strict=True)]),
                 one.targets)
        for one, known in ((turned.train, angles["train"]), (turned.val, angles["val"]))
    )  # fmt: skip
    return Images("upright_mnist", 10, 28, train, val, turned.test, turned.test)


def _turned_back(image: np.ndarray, degrees: float) -> np.ndarray:
    grey = Image.fromarray(image[..., 0]).rotate(float(degrees), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def tenth_of_digits() -> Images:
    """Return rotated digits with a tenth of the training images, the same part of every class."""
    whole = rotated_digits()
    return replace(whole, name="tenth_mnist", train=share(whole.train, 0.1, whole.num_classes))


def blood_cells() -> Images:
    """Return BloodMNIST content: 11,959, 1,712 and 3,421 cells of eight classes at 28 pixels."""
    site = load_site("blood", str(data_folder() / BLOOD), image_size=28, phantom_images=0, seed=0)
    return Images("blood", len(site.classes), 28, site.train, site.val, site.test, site.test)


def dermoscopy() -> Images:
    """Return the five sites' skin lesions pooled, no lesion in two splits: seven classes at 64 pixels."""
    small, large = (_pooled(size) for size in (DERMOSCOPY_SIZE, DERMOSCOPY_NATIVE))
    return Images("dermoscopy", 7, DERMOSCOPY_SIZE, small["train"], small["val"], small["test"], large["test"])


def _pooled(image_size: int) -> dict[str, ImageSet]:
    found = locate(str(data_folder()), image_size=image_size).sites
    sites = [
        load_site(site, spec, image_size=image_size, phantom_images=0, seed=0) for site, spec in sorted(found.items())
    ]
    return {
        split: ImageSet(
            np.concatenate([getattr(site, split).images for site in sites]),
            np.concatenate([getattr(site, split).targets for site in sites]),
        )
        for split in ("train", "val", "test")
    }


LOADERS: dict[str, Callable[[], Images]] = {
    "rotated_mnist": rotated_digits,
    "upright_mnist": upright_digits,
    "tenth_mnist": tenth_of_digits,
    "blood": blood_cells,
    "dermoscopy": dermoscopy,
    "pretrained": dermoscopy,
}
