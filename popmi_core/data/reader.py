"""Read a hospital's folder: ``labels.csv`` beside ``images/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from popmi_core.data.decode import SUFFIXES, Pixels, UnusableImage
from popmi_core.data.identify import Marks, read_checked, refuse_identifying
from popmi_core.data.images import SiteData, SkippedRow
from popmi_core.data.labelmap import (
    EXCLUDED,
    FILE_NAMES,
    LabelMap,
    explain_unmapped,
    infer_classes,
    read_label_map,
)
from popmi_core.data.manifest import Row, name_rows, read_manifest
from popmi_core.data.pool import Pool, complete_splits, explain_skipped
from popmi_core.errors import DataError

_DECODERS = 2


def read_site(
    folder: Path,
    *,
    image_size: int,
    classes: tuple[str, ...] | None = None,
    label_map: Mapping[str, str] | Path | None = None,
    site: str | None = None,
) -> SiteData:
    """Read one site's images and labels, ready to train on.

    A bad row or an unusable picture is left out and reported in ``skipped`` with its row number. Without a column
    ``split`` the images are cut 70/10/20 by patient or lesion, always in the same way; with train and test but no
    validation images, an eighth of the training lesions (if eight or more) becomes validation.

    Args:
        folder: Holds ``labels.csv`` and the pictures, in ``images/`` or beside it.
        image_size: Pixels per side after cropping to the central square.
        classes: The study's classes; inferred from the labels where None.
        label_map: The site's words for them; ``label_map.toml`` or ``label_map.csv`` in the folder where None.
        site: Name for messages; the folder's name where None.

    Raises:
        DataError: If labels.csv cannot be used, a label has no class, an image is named twice, a lesion lies in two
            splits, DICOM files tell who the patient is, or no image is left to train or to test on.
    """
    pool = read_folder(folder, image_size=image_size, classes=classes, label_map=label_map, site=site)
    return pool.to_site(pool.name, image_size=image_size)


def read_folder(
    folder: Path,
    *,
    image_size: int,
    classes: tuple[str, ...] | None = None,
    label_map: Mapping[str, str] | Path | None = None,
    site: str | None = None,
    allow_identifying: bool = False,
) -> Pool:
    """Read a folder as ``read_site`` does, keeping every column of ``labels.csv``.

    Args:
        folder: As for ``read_site``, and so are the others.
        allow_identifying: Read DICOM files that tell who the patient is, for a check of the site's own.

    Raises:
        DataError: As ``read_site``, except that a split may be empty.
    """
    name = site or folder.resolve().name
    manifest = read_manifest(folder / "labels.csv", site=name)
    labels = labels_of(manifest.rows, classes, words_of(folder, label_map, name), site=name)
    if problem := explain_unmapped({row.number: row.diagnosis for row in manifest.rows}, labels, site=name):
        raise DataError(problem)
    kept, skipped = _drop_excluded(manifest.rows, labels)
    pictures, marks = _read_pictures(kept, folder, image_size, name)
    if not allow_identifying:
        refuse_identifying(marks, site=name)
    usable = [
        (row, picture) for row, picture in zip(kept, pictures, strict=True) if not isinstance(picture, SkippedRow)
    ]
    skipped += [picture for picture in pictures if isinstance(picture, SkippedRow)]
    skipped = sorted([*manifest.skipped, *skipped], key=lambda entry: entry.row)
    if not usable:
        raise DataError(f"site {name}: no usable image in {len(skipped)} row(s). {explain_skipped(skipped)}")
    rows = [row for row, _ in usable]
    groups = [row.group for row in rows]
    return Pool(
        name,
        labels.classes,
        [picture for _, picture in usable],
        [labels.target(row.diagnosis) or 0 for row in rows],
        groups,
        complete_splits([row.split for row in rows], groups, [row.diagnosis.casefold() for row in rows], site=name),
        {column: [row.extra[column] for row in rows] for column in manifest.columns},
        tuple(skipped),
    )


def classes_of_folder(folder: Path) -> tuple[str, ...]:
    """Return the classes a site's labels (after its label map) stand for, without reading a picture.

    Raises:
        DataError: If labels.csv or the label map cannot be used.
    """
    site = folder.resolve().name
    rows = read_manifest(folder / "labels.csv", site=site).rows
    return infer_classes((row.diagnosis for row in rows), words_of(folder, None, site))


def words_of(folder: Path, label_map: Mapping[str, str] | Path | None, site: str) -> Mapping[str, str]:
    """Return a site's words -> classes: the given ones, else those of ``label_map.toml`` or ``.csv`` in the folder.

    Raises:
        DataError: If the file cannot be used.
    """
    if label_map is None:
        label_map = next((folder / file for file in FILE_NAMES if (folder / file).is_file()), {})
    return read_label_map(label_map, site=site) if isinstance(label_map, Path) else label_map


def labels_of(rows: Sequence[Row], classes: tuple[str, ...] | None, words: Mapping[str, str], *, site: str) -> LabelMap:
    """Return how the rows' words become classes; classes nobody named are inferred from the words.

    Raises:
        DataError: If a word is mapped to no class of the study.
    """
    return LabelMap(classes or infer_classes((row.diagnosis for row in rows), words), words, site=site)


def _drop_excluded(rows: Sequence[Row], labels: LabelMap) -> tuple[list[Row], list[SkippedRow]]:
    kept = [row for row in rows if labels.target(row.diagnosis) is not None]
    dropped = [row for row in rows if labels.target(row.diagnosis) is None]
    return kept, [SkippedRow(row.number, EXCLUDED) for row in dropped]


def _read_pictures(
    rows: Sequence[Row], folder: Path, image_size: int, site: str
) -> tuple[list[Pixels | SkippedRow], list[Marks]]:
    """Decode on two threads (Pillow releases the interpreter while it decodes), in the rows' order."""
    paths = find_pictures(rows, folder)
    _refuse_same_file(rows, paths, site)
    marks: list[Marks] = []

    def read(row: Row, path: Path | str) -> Pixels | SkippedRow:
        if isinstance(path, str):
            return SkippedRow(row.number, path)
        try:
            return read_checked(path, image_size=image_size, seen=marks)
        except UnusableImage as error:
            return SkippedRow(row.number, str(error))

    with ThreadPoolExecutor(_DECODERS) as pool:
        return list(pool.map(read, rows, paths)), marks


def find_pictures(rows: Sequence[Row], folder: Path) -> list[Path | str]:
    """Return every row's picture, or why there is none."""
    roots = tuple(root.resolve() for root in (folder / "images", folder) if root.is_dir())
    return [_find(row.image, roots) for row in rows]


def _refuse_same_file(rows: Sequence[Row], paths: Sequence[Path | str], site: str) -> None:
    """Refuse two spellings of one picture (with and without its ending), which would count a patient twice."""
    first: dict[Path, int] = {}
    twice: list[int] = []
    for row, path in zip(rows, paths, strict=True):
        if isinstance(path, Path) and first.setdefault(path, row.number) != row.number:
            twice += [first[path], row.number]
    if twice:
        raise DataError(
            f"site {site}: different names in labels.csv lead to the same picture ({name_rows(twice)}). "
            "Keep one row per image."
        )


def _find(image: str, roots: Sequence[Path]) -> Path | str:
    """Return the picture's path, or why there is none; a name that leads out of the site's folder is refused."""
    for root in roots:
        for suffix in ("", *SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)):
            try:
                path = (root / f"{image}{suffix}").resolve()
                found = path.is_file()
            except PermissionError:
                return "image file may not be read by this user"
            except (OSError, ValueError):  # a name no file system takes
                return "image name is no file name"
            if not path.is_relative_to(root):
                return "image name leads out of the site's folder"
            if found:
                return path
    return "image file is missing"
