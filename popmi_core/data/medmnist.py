"""MedMNIST files: official ones, and local ones in the same key layout."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from popmi_core.data.decode import Pixels, resize_stack
from popmi_core.data.manifest import Split
from popmi_core.data.medmnist_index import find_set
from popmi_core.data.pool import Pool
from popmi_core.errors import DataError

_GIVEN: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class _File:
    arrays: Mapping[str, npt.NDArray[Any]]
    lengths: Mapping[Split, int]


def read_medmnist(path: Path, *, image_size: int | None, part: str | None = None, site: str | None = None) -> Pool:
    """Read ``{train,val,test}_{images,labels}`` of an npz file; grey pictures become RGB.

    Names of the classes are the file's ``class_names``, else MedMNIST's own for a file named like an official one,
    else the numbers. Where the file has ``*_site`` (and ``site_names``), ``part`` chooses one of these sites.

    Args:
        path: The npz file. Pickled content is refused.
        image_size: Pixels per side, or None to keep the file's.
        part: One site inside the file, or None for all.
        site: Name for messages; the file's where None.

    Raises:
        DataError: If the file is damaged, lacks a key, has other shapes, several labels per picture, or no such part.
    """
    name = site or path.stem
    file = _open(path, name)
    images: list[Pixels] = []
    targets: list[int] = []
    splits: list[Split] = []
    for split in _GIVEN:
        pixels = _pixels(file.arrays[f"{split}_images"], split, name)
        images += list(pixels if image_size is None else resize_stack(pixels, image_size=image_size))
        targets += _targets(file.arrays[f"{split}_labels"], split, len(pixels), name)
        splits += [split] * len(pixels)
    classes = _classes(file.arrays, path, targets, name)
    columns = _columns(file)
    groups = [f"picture {position}" for position in range(len(targets))]
    pool = Pool(name, classes, images, targets, groups, splits, columns)
    return pool if part is None else pool.take(_positions(columns.get("site", []), part, name))


def list_parts(path: Path) -> tuple[str, ...]:
    """Return the names of the sites inside the file, sorted; empty where it does not say.

    Raises:
        DataError: If the file cannot be read.
    """
    return tuple(sorted(set(_columns(_open(path, path.stem, only=("site",))).get("site", ()))))


def list_words(path: Path, *, part: str | None, site: str) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the file's classes, and the class of every picture by its place from 1, without decoding a picture.

    Places count as those of ``read_medmnist``: through train, val and test, or through one part's.

    Raises:
        DataError: As ``read_medmnist``, as far as labels tell.
    """
    file = _open(path, site, only=("site", "labels"))
    targets = [
        target
        for split in _GIVEN
        for target in _targets(file.arrays[f"{split}_labels"], split, file.lengths[split], site)
    ]
    classes = _classes(file.arrays, path, targets, site)
    if part is not None:
        targets = [targets[position] for position in _positions(_columns(file).get("site", []), part, site)]
    return classes, {place: classes[target] for place, target in enumerate(targets, start=1)}


def peek_classes(path: Path) -> tuple[str, ...]:
    """Return the file's classes without decoding a picture.

    Raises:
        DataError: If the file cannot be read.
    """
    arrays = _open(path, path.stem, only=("labels",)).arrays
    targets = [int(label) for split in _GIVEN for label in arrays[f"{split}_labels"].ravel()]
    return _classes(arrays, path, targets, path.stem)


def _open(path: Path, site: str, *, only: tuple[str, ...] | None = None) -> _File:
    """Load the arrays (all, or those of the kinds ``only`` names) without ever unpickling."""
    wanted = [f"{split}_{kind}" for split in _GIVEN for kind in ("images", "labels")]
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            lacking = [key for key in wanted if key not in archive.files]
            if lacking:
                raise DataError(
                    f"site {site}: the npz file lacks {', '.join(lacking)}. POPMI reads MedMNIST's layout: "
                    f"{', '.join(wanted)}."
                )
            keys = [key for key in archive.files if only is None or not key.endswith("_images")]
            arrays = {key: archive[key] for key in keys if only is None or key.endswith((*only, "_names", "_labels"))}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"site {site}: the npz file cannot be read ({type(error).__name__}). It must be an uncut npz without "
            "pickled objects; fetch or write it again."
        ) from None
    return _File(arrays, {split: len(arrays[f"{split}_labels"]) for split in _GIVEN})


def _pixels(images: npt.NDArray[Any], split: str, site: str) -> Pixels:
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    square = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not square:
        raise DataError(
            f"site {site}: {split}_images has dtype {images.dtype} and shape {images.shape}, expected uint8 "
            "(n, height, width) or (n, height, width, 3). Volumes and other depths are not supported."
        )
    return images


def _targets(labels: npt.NDArray[Any], split: str, expected: int, site: str) -> list[int]:
    flat = labels.reshape(len(labels), -1) if labels.size else labels.reshape(0, 1)
    if flat.shape != (expected, 1) or not np.issubdtype(labels.dtype, np.integer) or (flat < 0).any():
        raise DataError(
            f"site {site}: {split}_labels has dtype {labels.dtype} and shape {labels.shape}, expected one whole "
            f"number from 0 for each of {expected} pictures. Sets with several labels per picture are not supported."
        )
    return [int(label) for label in flat[:, 0]]


def _classes(arrays: Mapping[str, npt.NDArray[Any]], path: Path, targets: list[int], site: str) -> tuple[str, ...]:
    needed = max(targets, default=0) + 1
    named = arrays.get("class_names")
    known = find_set(path.stem)
    classes = (known.classes if known else ()) if named is None else tuple(str(name) for name in named.ravel())
    classes = classes or tuple(str(index) for index in range(needed))
    if len(classes) < needed:
        raise DataError(
            f"site {site}: a label is {needed - 1}, but the file names {len(classes)} classes. Labels count from 0."
        )
    return classes


def _columns(file: _File) -> dict[str, list[str]]:
    """Return what the file knows of every picture beside image and label, as text."""
    kinds = {key.removeprefix("train_") for key in file.arrays if key.startswith("train_")} - {"images", "labels"}
    columns: dict[str, list[str]] = {}
    for kind in sorted(kinds):
        found = [file.arrays.get(f"{split}_{kind}") for split in _GIVEN]
        if any(
            array is None or array.shape != (file.lengths[split],) for array, split in zip(found, _GIVEN, strict=True)
        ):
            continue
        names = file.arrays.get(f"{kind}_names")
        values = [value for array in found if array is not None for value in array]
        columns[kind] = [str(value if names is None else names[int(value)]) for value in values]
    return columns


def _positions(sites: Sequence[str], part: str, site: str) -> list[int]:
    index = [position for position, name in enumerate(sites) if name == part]
    if not index:
        known = ", ".join(sorted(set(sites))) or "none"
        raise DataError(f"site {site}: the npz file has no part {part!r}; its parts are {known}.")
    return index
