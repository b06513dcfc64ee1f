"""Read a hospital's folder: ``labels.csv`` beside ``images/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from popmi_core.data.decode import SUFFIXES, Pixels, UnusableImage, read_image
from popmi_core.data.holdout import FRACTIONS, split_groups
from popmi_core.data.images import ImageSet, SiteData, SkippedRow
from popmi_core.data.labelmap import FILE_NAMES, LabelMap, infer_classes, read_label_map
from popmi_core.data.manifest import SPLITS, Manifest, Row, Split, name_rows, read_manifest
from popmi_core.errors import DataError

_SPLIT_SEED = 0
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
    validation images, an eighth of the training lesions becomes validation.

    Args:
        folder: Holds ``labels.csv`` and the pictures, in ``images/`` or beside it.
        image_size: Pixels per side after cropping to the central square.
        classes: The study's classes; inferred from the labels where None.
        label_map: The site's words for them; ``label_map.toml`` or ``label_map.csv`` in the folder where None.
        site: Name for messages; the folder's name where None.

    Raises:
        DataError: If labels.csv cannot be used, a label has no class, an image is named twice, a lesion lies in two
            splits, or no image is left to train or to test on.
    """
    name = site or folder.resolve().name
    manifest = read_manifest(folder / "labels.csv", site=name)
    labels = _labels(manifest.rows, folder, classes, label_map, name)
    kept, skipped = _drop_excluded(manifest.rows, labels)
    pictures = _read_pictures(kept, folder, image_size)
    usable: list[Row] = []
    pixels: list[Pixels] = []
    for row, picture in zip(kept, pictures, strict=True):
        if isinstance(picture, SkippedRow):
            skipped.append(picture)
        else:
            usable.append(row)
            pixels.append(picture)
    skipped = sorted([*manifest.skipped, *skipped], key=lambda entry: entry.row)
    if not usable:
        raise DataError(f"site {name}: no usable image in {len(skipped)} row(s). {_explain(skipped)}")
    splits = _splits(manifest, usable, name)
    targets = np.array([labels.target(row.diagnosis) for row in usable], dtype=np.int64)
    sets = {split: _select(pixels, targets, splits, split, image_size) for split in SPLITS}
    _refuse_empty(sets, name, skipped)
    return SiteData(name, labels.classes, sets["train"], sets["val"], sets["test"], sets["external"], tuple(skipped))


def _labels(
    rows: Sequence[Row],
    folder: Path,
    classes: tuple[str, ...] | None,
    label_map: Mapping[str, str] | Path | None,
    site: str,
) -> LabelMap:
    if label_map is None:
        label_map = next((folder / file for file in FILE_NAMES if (folder / file).is_file()), {})
    words = read_label_map(label_map, site=site) if isinstance(label_map, Path) else label_map
    labels = LabelMap(classes or infer_classes((row.diagnosis for row in rows), words), words, site=site)
    unmapped = [row.number for row in rows if not labels.knows(row.diagnosis)]
    if unmapped:
        raise DataError(
            f"site {site}: {len(unmapped)} label(s) have no class ({name_rows(unmapped)}). The study's classes are "
            f"{', '.join(labels.classes)}. Map the site's words onto them in label_map.csv; see docs/data.md."
        )
    return labels


def _drop_excluded(rows: Sequence[Row], labels: LabelMap) -> tuple[list[Row], list[SkippedRow]]:
    kept = [row for row in rows if labels.target(row.diagnosis) is not None]
    dropped = [row for row in rows if labels.target(row.diagnosis) is None]
    return kept, [SkippedRow(row.number, "the label map excludes this label") for row in dropped]


def _read_pictures(rows: Sequence[Row], folder: Path, image_size: int) -> list[Pixels | SkippedRow]:
    """Decode on two threads (Pillow releases the interpreter while it decodes), in the rows' order."""
    roots = tuple(root.resolve() for root in (folder / "images", folder) if root.is_dir())

    def read(row: Row) -> Pixels | SkippedRow:
        try:
            return read_image(_find(row.image, roots), image_size=image_size)
        except UnusableImage as error:
            return SkippedRow(row.number, str(error))

    with ThreadPoolExecutor(_DECODERS) as pool:
        return list(pool.map(read, rows))


def _find(image: str, roots: Sequence[Path]) -> Path:
    """Return the picture's path; a name that leads out of the site's folder is refused."""
    for root in roots:
        for suffix in ("", *SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)):
            try:
                path = (root / f"{image}{suffix}").resolve()
                found = path.is_file()
            except (OSError, ValueError):  # a name no file system takes
                raise UnusableImage("image name is no file name") from None
            if not path.is_relative_to(root):
                raise UnusableImage("image name leads out of the site's folder")
            if found:
                return path
    raise UnusableImage("image file is missing")


def _splits(manifest: Manifest, rows: Sequence[Row], site: str) -> list[Split]:
    groups, words = [row.group for row in rows], [row.diagnosis.casefold() for row in rows]
    rng = np.random.default_rng(_SPLIT_SEED)
    if not manifest.has_split:
        return split_groups(groups, words, rng=rng, site=site)
    given = [row.split or "train" for row in rows]
    if "val" in given or "train" not in given:
        return given
    training = [index for index, split in enumerate(given) if split == "train"]
    cut = split_groups(
        [groups[index] for index in training],
        [words[index] for index in training],
        rng=rng,
        site=site,
        fractions={"train": 0.875, "val": 0.125},
    )
    for index, split in zip(training, cut, strict=True):
        given[index] = split
    return given


def _select(
    pixels: Sequence[Pixels], targets: npt.NDArray[np.int64], splits: Sequence[Split], split: Split, image_size: int
) -> ImageSet:
    index = np.flatnonzero(np.array(splits) == split)
    if not len(index):
        return ImageSet.empty(image_size)
    return ImageSet(np.stack([pixels[position] for position in index]), targets[index])


def _refuse_empty(sets: Mapping[Split, ImageSet], site: str, skipped: Sequence[SkippedRow]) -> None:
    lacking = [split for split in FRACTIONS if split != "val" and not len(sets[split])]
    external_only = len(sets["external"]) and not any(len(sets[split]) for split in FRACTIONS)
    if lacking and not external_only:
        raise DataError(
            f"site {site}: no usable image in split {' and '.join(lacking)}. {_explain(skipped)} "
            "Fill these splits, or leave the column 'split' out and POPMI splits by lesion."
        )


def _explain(skipped: Sequence[SkippedRow]) -> str:
    reasons: dict[str, list[int]] = {}
    for entry in skipped:
        reasons.setdefault(entry.reason, []).append(entry.row)
    told = "; ".join(f"{reason} ({name_rows(numbers, most=4)})" for reason, numbers in sorted(reasons.items()))
    return f"Skipped: {told}." if told else "Add rows to labels.csv."
