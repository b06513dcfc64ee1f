"""Files that tell who the patient is: names of attributes, never values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_of, write_dicom
from PIL import Image
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from popmi_core.data.confidential import BURNED_IN, MAY_BE_DUMMY, OTHER_NAMES, PRIVATE, REFUSED_KINDS, TOLD_KINDS
from popmi_core.data.decode import UnusableImage
from popmi_core.data.identify import Marks, exif_marks, marks_of, name_tag, refuse_identifying
from popmi_core.data.look import Look, look_at
from popmi_core.errors import DataError

PIXELS = np.zeros((4, 6), np.uint8)


def test_every_attribute_of_the_tables_is_in_the_dicom_dictionary_and_in_one_table_only() -> None:
    named = (set(REFUSED_KINDS) | set(TOLD_KINDS)) - {PRIVATE, OTHER_NAMES, "OverlayData"}

    assert [keyword for keyword in named if tag_for_keyword(keyword) is None] == []
    assert set(REFUSED_KINDS) & set(TOLD_KINDS) == set()
    assert set(REFUSED_KINDS) >= MAY_BE_DUMMY


def test_a_file_that_names_nobody_has_no_mark(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, BurnedInAnnotation="NO", PatientName="^^", AccessionNumber=" ")

    assert marks_of(path) == Marks(frozenset(), frozenset(), frozenset())


@pytest.mark.parametrize("keyword", sorted(set(REFUSED_KINDS) - {PRIVATE, OTHER_NAMES, BURNED_IN}))
def test_every_attribute_of_the_table_is_found_where_it_is_filled(tmp_path: Path, keyword: str) -> None:
    value: object = {"DA": "19700101", "TM": "1200", "SQ": [Dataset()], "DS": "8.5"}.get(dictionary_VR(keyword), "Anna")
    path = write_dicom(tmp_path / "a.dcm", PIXELS, **{keyword: value})

    assert marks_of(path).identifying == {keyword}


def test_names_inside_sequences_burned_in_text_and_private_attributes_are_found(tmp_path: Path) -> None:
    inner = Dataset()
    inner.PatientID = "4711"
    inner.RequestingPhysician = "Meier^Anna"
    dataset = dicom_of(PIXELS, BurnedInAnnotation="YES", OtherPatientIDsSequence=[inner], SeriesDate="20200101")
    dataset.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "Anna")
    dataset.RadiopharmaceuticalStopTime = "1200"
    dataset.EvaluatorName = "Dr^Who"  # a name that is in no table
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    marks = marks_of(tmp_path / "a.dcm")

    assert marks.identifying == {"PatientID", "RequestingPhysician", BURNED_IN, PRIVATE, OTHER_NAMES}
    assert marks.told == {"SeriesDate"}
    assert "Anna" not in repr(marks)


def test_an_empty_private_block_is_no_mark(tmp_path: Path) -> None:
    dataset = dicom_of(PIXELS)
    dataset.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "")
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    assert marks_of(tmp_path / "a.dcm").identifying == frozenset()


def test_an_overlay_is_told(tmp_path: Path) -> None:
    dataset = dicom_of(PIXELS)
    dataset.add_new(0x60003000, "OW", b"\1\0\1\0")
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    assert marks_of(tmp_path / "a.dcm").told == {"OverlayData"}


def test_where_identity_was_removed_dummies_are_allowed_but_nothing_that_had_to_go(tmp_path: Path) -> None:
    told = {"PatientName": "SUBJECT 7", "PatientID": "7", "PatientAddress": "Hauptstr. 1"}
    said = write_dicom(tmp_path / "a.dcm", PIXELS, PatientIdentityRemoved="YES", **told)
    unsaid = write_dicom(tmp_path / "b.dcm", PIXELS, PatientIdentityRemoved="NO", **told)

    assert marks_of(said).identifying == {"PatientAddress"}
    assert marks_of(said).pseudonyms == {"PatientName", "PatientID"}
    assert marks_of(unsaid).identifying == {"PatientName", "PatientID", "PatientAddress"}


def test_an_attribute_that_cannot_be_read_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    monkeypatch.setattr("popmi_core.data.identify._says_something", lambda value: 1 / 0)

    with pytest.raises(UnusableImage, match=r"DICOM header is damaged \(ZeroDivisionError\)"):
        marks_of(path)


def test_the_refusal_lists_attributes_with_numbers_and_counts_and_the_way_out() -> None:
    one = Marks(frozenset({"PatientName", BURNED_IN}), frozenset(), frozenset())
    two = Marks(frozenset({"PatientName", PRIVATE}), frozenset({"StudyDate"}), frozenset())

    with pytest.raises(
        DataError,
        match=r"site north: DICOM files tell who the patients are: BurnedInAnnotation \(0028,0301\) in fewer than 5 "
        r"file\(s\), PatientName \(0010,0010\) in 5 file\(s\), private attributes in fewer than 5 file\(s\)\. "
        r"De-identify them",
    ):
        refuse_identifying([one, two, two, two, two], site="north")

    refuse_identifying([Marks(frozenset(), frozenset({"StudyDate"}), frozenset())], site="north")
    assert name_tag("OverlayData") == "OverlayData"


def test_notes_of_a_camera_are_found_by_kind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Anna Meier"
    exif.get_ifd(0x8769)[0xA431] = "SN 12345"
    exif.get_ifd(0x8825)[2] = (48.0, 12.0, 30.0)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (4, 4)).save(tmp_path / "c.jpg", exif=turned)
    (tmp_path / "d.jpg").write_text("no picture")

    assert exif_marks(tmp_path / "a.jpg") == {"owner or author", "serial number", "position"}
    assert [exif_marks(tmp_path / f"{name}.jpg") for name in "bcd"] == [frozenset()] * 3


def test_a_look_tells_kind_size_and_colour_without_the_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    Image.new("L", (5, 3)).save(tmp_path / "b.bmp")
    colour = write_dicom(tmp_path / "c", np.zeros((4, 6, 3), np.uint8), "RGB")

    assert look_at(tmp_path / "a.png") == Look("PNG", 5, 3, True)
    assert look_at(tmp_path / "b.bmp") == Look("BMP", 5, 3, False)
    assert look_at(colour) == Look("DICOM", 6, 4, True, marks_of(colour))
    assert not look_at(write_dicom(tmp_path / "d.dcm", PIXELS)).colour


def test_a_look_at_a_damaged_file_says_why_and_never_which(tmp_path: Path) -> None:
    (tmp_path / "anna.png").write_text("no picture")
    header = dicom_of(PIXELS)
    del header.Rows, header.Columns
    header.save_as(tmp_path / "anna.dcm", enforce_file_format=True)

    for name in ("anna.png", "anna.dcm", "anna.gone"):
        with pytest.raises(
            UnusableImage, match=r"header cannot be read \((Unidentified|Attribute|FileNotFound)"
        ) as caught:
            look_at(tmp_path / name)
        assert "anna" not in str(caught.value)


def test_what_a_de_identified_file_keeps_of_its_former_values_is_refused(tmp_path: Path) -> None:
    former = Dataset()
    former.ModifiedAttributesSequence = [Dataset()]
    former.ModifiedAttributesSequence[0].PatientName = "Meier^Anna"
    path = write_dicom(tmp_path / "a.dcm", PIXELS, PatientIdentityRemoved="YES", OriginalAttributesSequence=[former])

    # A name in there is no dummy, whatever the file says of itself.
    assert "OriginalAttributesSequence" in marks_of(path).identifying
