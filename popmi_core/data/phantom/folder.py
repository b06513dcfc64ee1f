"""A phantom site written as a hospital brings its data: labels.csv and images/."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.phantom.generate import SPLITS, Drawn, draw_site
from popmi_core.errors import DataError

COLUMNS: tuple[str, ...] = ("image", "lesion_id", "diagnosis", "age", "sex", "localization", "split")
_PLACES = ("back", "trunk", "lower extremity", "upper extremity", "face", "")


def write_phantom_site(folder: Path, site: str, *, num_images: int, image_size: int, seed: int) -> Path:
    """Write ``folder/labels.csv`` and ``folder/images/<image>.png`` and return ``folder``.

    The pixels equal those of make_phantom_site for the same arguments. Age (years), sex and localization are drawn
    at random and tell nothing about the class; some are left empty, as real ones are.

    Raises:
        DataError: As make_phantom_site, or if ``folder`` already holds a labels.csv.
    """
    from PIL import Image  # only who writes pictures needs pillow

    labels = folder / "labels.csv"
    if labels.exists():
        raise DataError(f"{folder} already holds a labels.csv; the phantom does not overwrite data. Give a new folder.")
    drawn = draw_site(site, num_images=num_images, image_size=image_size, seed=seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = _rows(site, drawn, seed)
    for row, pixels in zip(rows, drawn.images, strict=True):
        Image.fromarray(pixels).save(folder / "images" / f"{row[0]}.png")
    with labels.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return folder


def _rows(site: str, drawn: Drawn, seed: int) -> list[tuple[str, ...]]:
    rng = np.random.default_rng([seed, 2])
    count = int(drawn.lesions.max()) + 1
    ages, sexes, places = (rng.integers(0, most, count) for most in (15, 10, len(_PLACES)))
    rows: list[tuple[str, ...]] = []
    for index, (target, lesion, split) in enumerate(zip(drawn.targets, drawn.lesions, drawn.splits, strict=True)):
        age = "" if ages[lesion] == 0 else str(15 + 5 * int(ages[lesion]))
        sex = ("", "female", "male")[min(1 + int(sexes[lesion]) % 2, 2) if sexes[lesion] else 0]
        rows.append(
            (
                f"{site}_{index:06d}",
                f"{site}_lesion_{lesion:06d}",
                DERMOSCOPY_CLASSES[target],
                age,
                sex,
                _PLACES[places[lesion]],
                SPLITS[split],
            )
        )
    return rows
