"""A made-up hospital of 44 grey pictures whose names must not show, and its check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_files import write_dicom
from PIL import Image

from client.site.datacheck import check_data
from client.site.datareport import DataReport

CLASSES = ("bcc", "mel", "nv")
SPLITS = (("train", 24), ("val", 12), ("test", 8))

Rows = list[dict[str, str]]


def told_rows() -> Rows:
    """Return the rows: 12 mel and 12 nv train, 6 and 6 val, 6 and 2 test; no bcc."""
    given = [split for split, number in SPLITS for _ in range(number)]
    label = [("mel", "nv")[n % 2] for n in range(36)] + ["mel"] * 6 + ["nv"] * 2
    return [
        {"image": f"anna{n:02d}", "patient_id": f"meier{n:02d}", "diagnosis": label[n], "split": split}
        for n, split in enumerate(given)
    ]


def write_hospital(root: Path, change: Callable[[Rows], object] | None = None) -> Path:
    """Write a hospital of pictures that all differ, with rows that the caller may change, and return its folder."""
    folder = root / "klinik"
    (folder / "images").mkdir(parents=True)
    rows = told_rows()
    for number, row in enumerate(rows):
        Image.new("L", (10, 8), number).save(folder / "images" / f"{row['image']}.png")
    if change is not None:
        change(rows)
    header = list(rows[0])
    lines = [",".join(header), *(",".join(row[name] for name in header) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def swap_for_dicom(folder: Path, image: str, **attributes: object) -> Path:
    """Put a DICOM file in the place of a picture."""
    (folder / "images" / f"{image}.png").unlink()
    pixels = np.full((8, 10), 100 + int(image[-2:]), np.uint8)
    return write_dicom(folder / "images" / f"{image}.dcm", pixels, **attributes)


def checked(folder: Path, **options: object) -> DataReport:
    """Return the report on a folder, once it is seen to name no file, no patient and no place."""
    report = check_data(str(folder), CLASSES, None, 8, **options)  # type: ignore[arg-type]
    text = report.model_dump_json()
    for name in ("anna", "meier", "klinik"):
        assert name not in text.lower()
    return report


def only_reason(report: DataReport) -> str:
    """Return the one reason for which a data set is refused."""
    assert report.verdict == "refused"
    assert len(report.reasons) == 1
    return report.reasons[0]
