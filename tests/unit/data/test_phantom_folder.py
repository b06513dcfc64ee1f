"""A phantom site on disk is a hospital's folder: labels.csv and images."""

import csv
from pathlib import Path

import numpy as np
import pytest

from popmi_core.data.phantom import make_phantom_site, write_phantom_site
from popmi_core.data.phantom.folder import COLUMNS
from popmi_core.errors import DataError

ARGUMENTS = {"num_images": 40, "image_size": 24, "seed": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_site(tmp_path_factory.mktemp("phantom") / "site", "phantom_contact", **ARGUMENTS)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_one_row_per_picture(folder: Path) -> None:
    rows = rows_of(folder)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 40
    assert {row["image"] for row in rows} == {path.stem for path in (folder / "images").glob("*.png")}
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert all(row["image"].startswith("phantom_") for row in rows)
    assert {row["sex"] for row in rows} <= {"", "female", "male"}
    assert all(row["age"] == "" or 20 <= int(row["age"]) <= 85 for row in rows)


def test_photographs_of_one_lesion_share_their_patient_and_split(folder: Path) -> None:
    kept = ("diagnosis", "age", "sex", "localization", "split")
    of_lesion: dict[str, set[tuple[str, ...]]] = {}
    for row in rows_of(folder):
        of_lesion.setdefault(row["lesion_id"], set()).add(tuple(row[name] for name in kept))
    assert all(len(values) == 1 for values in of_lesion.values())
    assert len(of_lesion) < 40


def test_the_site_reader_gives_back_the_same_pixels(folder: Path) -> None:
    data = pytest.importorskip("popmi_core.data")
    read = data.read_site(folder, image_size=24)
    made = make_phantom_site("phantom_contact", **ARGUMENTS)
    assert read.classes == made.classes
    for split in ("train", "val", "test"):
        assert np.array_equal(getattr(read, split).images, getattr(made, split).images)
        assert np.array_equal(getattr(read, split).targets, getattr(made, split).targets)
    assert not read.skipped


def test_writing_twice_gives_the_same_table(folder: Path, tmp_path: Path) -> None:
    again = write_phantom_site(tmp_path / "again", "phantom_contact", **ARGUMENTS)
    assert (again / "labels.csv").read_bytes() == (folder / "labels.csv").read_bytes()


def test_data_that_lie_there_are_not_overwritten(folder: Path) -> None:
    before = (folder / "labels.csv").read_bytes()
    with pytest.raises(DataError, match=r"already holds a labels\.csv; the phantom does not overwrite"):
        write_phantom_site(folder, "phantom_contact", **ARGUMENTS)
    assert (folder / "labels.csv").read_bytes() == before
