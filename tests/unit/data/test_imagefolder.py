"""Pictures sorted into class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from popmi_core.data import load_site, locate
from popmi_core.data.imagefolder import is_imagefolder, list_pictures, read_imagefolder
from popmi_core.errors import DataError


def _fill(folder: Path, *classes: str, number: int = 20) -> Path:
    for level, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for position in range(number):
            Image.new("RGB", (7, 6), (level * 40, position, 0)).save(folder / label / f"{position:02d}.png")
    return folder


def test_class_folders_are_cut_seventy_ten_twenty(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "skin", "nv", "mel")
    (folder / "nv" / "Thumbs.db").write_text("no picture")
    (folder / ".hidden").mkdir()

    found = locate(str(folder), image_size=6)
    data = load_site("skin", found.sites["skin"], image_size=6, phantom_images=35, seed=0)

    assert found.classes == ("mel", "nv")
    assert [len(data.train), len(data.val), len(data.test)] == [28, 4, 8]
    # Folder mel is painted with red 40, nv with red 0.
    assert (data.train.images[:, 0, 0, 0] == (1 - data.train.targets) * 40).all()


def test_folders_for_splits_are_kept(tmp_path: Path) -> None:
    for split, number in (("train", 9), ("valid", 2), ("test", 3)):
        _fill(tmp_path / "skin" / split, "a", "b", number=number)

    data = read_imagefolder(tmp_path / "skin", image_size=6).to_site("skin", image_size=6)

    assert [len(data.train), len(data.val), len(data.test)] == [18, 4, 6]


def test_a_damaged_picture_is_left_out_and_told_by_its_position(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "skin", "a", "b")
    (folder / "a" / "03.png").write_text("no picture")

    data = read_imagefolder(folder, image_size=6)

    assert [(entry.row, entry.reason) for entry in data.skipped] == [
        (4, "image cannot be decoded (UnidentifiedImageError)")
    ]


def test_a_folder_that_is_no_class_of_the_study_stops_the_site(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "skin", "nv", "meier_anna")

    with pytest.raises(DataError, match=r"site skin: 1 label\(s\) in 20 row\(s\) .*rows 1, .* mel, nv\. Map") as caught:
        read_imagefolder(folder, image_size=6, classes=("mel", "nv"))

    assert "anna" not in str(caught.value)


def test_no_usable_picture_stops_the_site(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "skin", "a", "b", number=1)
    for picture in folder.rglob("*.png"):
        picture.write_text("no picture")

    with pytest.raises(DataError, match=r"no usable picture in the class folders. Skipped: .* \(rows 1, 2\)"):
        read_imagefolder(folder, image_size=6)


def test_one_folder_of_pictures_is_no_imagefolder(tmp_path: Path) -> None:
    assert not is_imagefolder(_fill(tmp_path / "skin", "holiday"))


def test_dicom_files_count_whatever_their_ending_and_other_files_do_not(tmp_path: Path) -> None:
    for label in ("mel", "nv"):
        (tmp_path / label).mkdir()
        for name in ("IM000001", "1.2.840.7", "a.dcm"):
            write_dicom(tmp_path / label / name, np.zeros((8, 8), np.uint8))
        (tmp_path / label / "notes.txt").write_text("by hand")
        (tmp_path / label / ".IM000002").write_bytes((tmp_path / label / "a.dcm").read_bytes())

    assert is_imagefolder(tmp_path)
    assert [file.name for _, _, file in list_pictures(tmp_path)] == ["1.2.840.7", "IM000001", "a.dcm"] * 2
