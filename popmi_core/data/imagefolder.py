"""Pictures sorted into one folder per class, with or without folders for the splits above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from popmi_core.data.decode import SUFFIXES, Pixels, UnusableImage
from popmi_core.data.dicom import is_dicom
from popmi_core.data.identify import Marks, read_checked, refuse_identifying
from popmi_core.data.images import SkippedRow
from popmi_core.data.labelmap import EXCLUDED, LabelMap, explain_unmapped, renamed
from popmi_core.data.manifest import SPLIT_NAMES, Split
from popmi_core.data.pool import Pool, complete_splits, explain_skipped
from popmi_core.errors import DataError

_LOOK = 200


def is_imagefolder(path: Path) -> bool:
    """Say whether at least two class folders (directly, or below ``train``) hold pictures."""
    root = next((child for child in _folders(path) if SPLIT_NAMES.get(child.name.lower()) == "train"), path)
    return sum(any(_is_picture(file) for file in islice(child.iterdir(), _LOOK)) for child in _folders(root)) >= 2


def list_classes(path: Path) -> tuple[str, ...]:
    """Return the class folders' names, sorted."""
    return tuple(sorted({label.name for _, label in _class_folders(path)}))


def read_imagefolder(
    path: Path,
    *,
    image_size: int,
    classes: tuple[str, ...] | None = None,
    words: Mapping[str, str] | None = None,
    site: str | None = None,
    allow_identifying: bool = False,
) -> Pool:
    """Read ``<class>/<picture>`` or ``<split>/<class>/<picture>``.

    Nothing says which pictures show the same lesion, so a split made here is by picture. A picture that cannot be
    used is reported with its position in the sorted listing, counted from 1.

    Args:
        path: The folder.
        image_size: Pixels per side.
        classes: The study's classes; the folders' names (after ``words``) where None.
        words: The site's names of folders -> the study's classes.
        site: Name for messages; the folder's where None.
        allow_identifying: Read DICOM files that tell who the patient is, for a check of the site's own.

    Raises:
        DataError: If class folders are not among ``classes``, DICOM files tell who the patient is, or no picture can
            be used.
    """
    name = site or path.resolve().name
    labels = LabelMap(classes or renamed(list_classes(path), words or {}), words or {}, site=name)
    classes = labels.classes
    marks: list[Marks] = []
    images: list[Pixels] = []
    targets: list[int] = []
    given: list[Split | None] = []
    skipped: list[SkippedRow] = []
    pictures = list(list_pictures(path))
    words_of_all = {position: label for position, (_, label, _) in enumerate(pictures, start=1)}
    if problem := explain_unmapped(words_of_all, labels, site=name):
        raise DataError(problem)
    for position, (split, label, file) in enumerate(pictures, start=1):
        target = labels.target(label)
        if target is None:
            skipped.append(SkippedRow(position, EXCLUDED))
            continue
        try:
            images.append(read_checked(file, image_size=image_size, seen=marks))
        except UnusableImage as error:
            skipped.append(SkippedRow(position, str(error)))
            continue
        targets.append(target)
        given.append(split)
    if not allow_identifying:
        refuse_identifying(marks, site=name)
    if not images:
        raise DataError(f"site {name}: no usable picture in the class folders. {explain_skipped(skipped)}")
    groups = [f"picture {position}" for position in range(len(images))]
    splits = complete_splits(given, groups, [classes[target] for target in targets], site=name)
    return Pool(name, classes, images, targets, groups, splits, {}, tuple(skipped))


def list_pictures(path: Path) -> Iterator[tuple[Split | None, str, Path]]:
    """Yield the split, the class folder's name and the file of every picture, always in the same order."""
    for split, folder in _class_folders(path):
        for file in sorted(folder.iterdir()):
            if _is_picture(file):
                yield split, folder.name, file


def _class_folders(path: Path) -> list[tuple[Split | None, Path]]:
    tops = _folders(path)
    splits = {child: SPLIT_NAMES.get(child.name.lower()) for child in tops}
    if any(split == "train" for split in splits.values()):
        return [(split, label) for top, split in splits.items() if split for label in _folders(top)]
    return [(None, label) for label in tops]


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _is_picture(file: Path) -> bool:
    if file.name.startswith("."):
        return False
    # An archive's DICOM files often have no ending, or a number for one.
    return file.suffix.lower() in SUFFIXES or (file.is_file() and is_dicom(file))
