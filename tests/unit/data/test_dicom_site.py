"""A hospital's folder whose pictures are DICOM files, all of them or some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_of, write_dicom

from popmi_core.data import load_site, read_site
from popmi_core.data.native import native_size
from popmi_core.data.shape import shape_of
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]


def _swap(folder: Path, image: str, *, ending: str = ".dcm", level: int = 200, **attributes: object) -> None:
    """Put a DICOM file of one grey level in the place of a picture."""
    (folder / "images" / f"{image}.png").unlink()
    pixels = np.full((8, 10), level, np.uint8)
    write_dicom(folder / "images" / f"{image}{ending}", pixels, **attributes)


def _rows(number: int = 12) -> list[dict[str, str]]:
    splits = ("train", "train", "val", "test")
    return [{"image": f"P{n}", "diagnosis": ("nv", "mel")[n % 2], "split": splits[n % 4]} for n in range(number)]


def test_dicom_files_are_read_beside_pictures_with_and_without_their_ending(make_hospital: MakeHospital) -> None:
    folder = make_hospital(_rows())
    _swap(folder, "P0")
    _swap(folder, "P1", ending=".DCM", level=100)
    _swap(folder, "P4", ending="", level=50)
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\nP1,", "\nP1.DCM,"))

    data = read_site(folder, image_size=4)

    assert len(data.skipped) == 0
    # Rows P0, P1, P4, P5, P8, P9 train; P5 is a picture of colour (20, 100, 50).
    assert data.train.images[:, 0, 0].tolist()[:4] == [[200] * 3, [100] * 3, [50] * 3, [20, 100, 50]]


def test_bad_dicom_files_are_left_out_with_row_and_transfer_syntax(make_hospital: MakeHospital) -> None:
    folder = make_hospital(_rows())
    _swap(folder, "P0")
    path = folder / "images" / "P0.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    frames = dicom_of(np.zeros((16, 10), np.uint8), Rows=8, NumberOfFrames=2)
    (folder / "images" / "P5.png").unlink()
    frames.save_as(folder / "images" / "P5.dcm", enforce_file_format=True)

    data = read_site(folder, image_size=4)

    syntax = "transfer syntax Explicit VR Little Endian (1.2.840.10008.1.2.1)"
    assert [(entry.row, entry.reason) for entry in data.skipped] == [
        (2, f"DICOM cannot be decoded (ValueError, {syntax})"),
        (7, f"DICOM has 2 frames, expected one ({syntax})"),
    ]


def test_identifying_files_stop_the_site_unless_they_would_not_be_used(make_hospital: MakeHospital) -> None:
    folder = make_hospital(_rows())
    _swap(folder, "P0", PatientName="Meier^Anna", BurnedInAnnotation="YES")

    with pytest.raises(
        DataError, match=r"site hospital: .*BurnedInAnnotation \(0028,0301\) in fewer than 5 file.*PatientName"
    ) as caught:
        read_site(folder, image_size=4)
    assert "Anna" not in str(caught.value)
    with pytest.raises(DataError, match=r"site north: DICOM files tell who the patients are"):
        load_site("north", str(folder), image_size=4, phantom_images=0, seed=0)

    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\nP0,nv", "\nP0,scar"))
    assert len(read_site(folder, image_size=4, label_map={"scar": "ignore"}).skipped) == 1


def test_class_folders_of_dicom_files_are_class_folders(tmp_path: Path) -> None:
    for place, label in enumerate(("nv", "mel")):
        (tmp_path / "skin" / label).mkdir(parents=True)
        for number in range(10):
            write_dicom(tmp_path / "skin" / label / f"{number}.dcm", np.full((12, 9), 100 * place, np.uint8))

    assert shape_of(tmp_path / "skin") == "imagefolder"
    data = load_site("skin", str(tmp_path / "skin"), image_size=4, phantom_images=0, seed=0, classes=("nv", "mel"))

    assert (data.train.images[:, 0, 0, 0] == 100 * data.train.targets).all()
    assert native_size(str(tmp_path / "skin"), drawn=64, most=256) == 9
    write_dicom(tmp_path / "skin" / "nv" / "0.dcm", np.zeros((12, 9), np.uint8), PatientID="4711")
    with pytest.raises(DataError, match=r"PatientID \(0010,0020\) in fewer than 5 file"):
        load_site("skin", str(tmp_path / "skin"), image_size=4, phantom_images=0, seed=0)
