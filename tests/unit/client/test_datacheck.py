"""What a check of a site's data finds: every bad input of privacy-and-faults.md, 22 to 24."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from dicom_files import dicom_of
from PIL import Image
from small_hospital import CLASSES, Rows, checked, only_reason, swap_for_dicom, write_hospital

from client.site.datacheck import check_data, examine
from client.site.datapage import report_text
from client.site.datareport import SplitCounts

LITTLE = "transfer syntax Explicit VR Little Endian (1.2.840.10008.1.2.1)"


def test_a_sound_data_set_is_usable_and_small_cells_are_hidden(tmp_path: Path) -> None:
    report = checked(write_hospital(tmp_path))

    assert (report.verdict, report.reasons, report.warnings, report.unread) == ("usable", (), (), ())
    # Of bcc nothing is told, nor that it is none; the hidden of one split hold five patients or more.
    assert report.splits == (
        SplitCounts(split="train", images=24, classes=(None, None, 12)),
        SplitCounts(split="val", images=12, classes=(None, None, 6)),
        SplitCounts(split="test", images=8, classes=(None, None, None)),
    )
    assert (report.labels.told, report.labels.few) == (("mel", "nv"), ("bcc",))
    assert report.leakage.grouped_by == "patient"
    assert report.source == "folder with labels.csv"
    assert report.shape.model_dump() == {
        "kinds": {"PNG": 44}, "smallest": "10 x 8", "median_side": 8, "largest": "10 x 8", "colour": 0, "grey": 44,
    }  # fmt: skip


def test_a_small_split_is_hidden_with_another_that_would_give_it_away(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows[24:33]:
            row["split"] = "train"

    report = checked(write_hospital(tmp_path, change))

    assert [(told.split, told.images) for told in report.splits] == [("train", 33), ("val", None), ("test", None)]
    assert report.splits[1].classes == (None, None, None)
    assert "33 train, (hidden here) val" in report.leaves[0]


def test_of_a_hidden_split_not_even_large_classes_are_told(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row["split"] = "train" if number < 21 else "val" if number < 24 else "test"

    report = checked(write_hospital(tmp_path, change))

    # Of test there are 12 mel and 8 nv; its number would give the three of val away.
    assert report.splits[1:] == (
        SplitCounts(split="val", images=None, classes=(None, None, None)),
        SplitCounts(split="test", images=None, classes=(None, None, None)),
    )


def test_images_that_are_all_external_are_refused_and_counted(tmp_path: Path) -> None:
    report = checked(write_hospital(tmp_path, lambda rows: [row.update(split="external") for row in rows]))

    assert "every usable image is of split external, which no site trains on" in only_reason(report)
    assert "leave the column 'split' out" in report.reasons[0]
    assert report.splits == (SplitCounts(split="external", images=44, classes=(None, 24, None)),)


# Fault 22: a bad table.
def test_a_place_without_images_is_refused_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "klinik").mkdir()
    for place in (tmp_path / "klinik", tmp_path / "klinik" / "gone"):
        assert "site here: there are no images of a shape POPMI reads" in only_reason(checked(place))


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    (folder / "labels.csv").write_text("name,what\nmeier,nv\n")

    report = checked(folder, site="north")

    assert "site north: labels.csv has no column 'image' and no column 'diagnosis'" in only_reason(report)
    assert report.splits == ()


def test_missing_files_and_bad_rows_are_left_out_with_their_row_numbers(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path, lambda rows: rows[5].update(diagnosis=""))
    (folder / "images" / "anna00.png").unlink()
    (folder / "images" / "anna03.png").unlink()
    (folder / "images" / "anna04.png").write_text("no picture")

    report = checked(folder)

    details = examine(str(folder), CLASSES, None, 8).details
    assert report.verdict == "usable"
    assert [(entry.reason, entry.files, entry.rows) for entry in report.unread] == [
        ("diagnosis is empty", None, ()),
        ("image cannot be decoded (UnidentifiedImageError)", None, ()),
        ("image file is missing", None, ()),
    ]
    assert report.warnings == ("Some file(s) or row(s) cannot be used and are left out; --names lists them.",)
    assert [entry.row for entry in details.entries] == [2, 5, 6, 7]


def test_five_files_that_cannot_be_used_are_counted_with_their_rows(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    for number in range(5):
        (folder / "images" / f"anna{number:02d}.png").unlink()

    report = checked(folder)

    assert [(entry.files, entry.rows) for entry in report.unread] == [(5, (2, 3, 4, 5, 6))]
    assert report.warnings == ("5 file(s) or row(s) cannot be used and are left out; --names lists them.",)


def test_an_image_named_twice_is_refused_with_its_rows(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path, lambda rows: rows[7].update(image="anna02"))

    assert "names 1 image(s) more than once (rows 4, 9)" in only_reason(checked(folder))


def test_words_without_a_class_are_refused_with_rows_and_the_rest_is_counted(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[1]["diagnosis"] = rows[3]["diagnosis"] = "Meierfleck"

    folder = write_hospital(tmp_path, change)

    report = checked(folder)
    details = examine(str(folder), CLASSES, None, 8).details

    assert "1 label(s) in 2 row(s) have no class (rows 3, 5)" in only_reason(report)
    assert "label_map.csv or label_map.toml" in report.reasons[0]
    assert (report.labels.unmapped_words, report.labels.unmapped_rows, report.labels.excluded) == (1, (3, 5), 0)
    assert report.splits[0].images == 22
    assert [entry.what for entry in details.entries] == ["word without a class: 'Meierfleck' in 2 row(s): rows 3, 5"]


def test_a_label_map_mends_words_and_the_few_it_leaves_out_are_not_counted(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[1]["diagnosis"], rows[3]["diagnosis"] = "Naevus", "scar"

    folder = write_hospital(tmp_path, change)
    (tmp_path / "words.toml").write_text('naevus = "nv"\nscar = "ignore"\n')

    for report in (
        check_data(str(folder), CLASSES, tmp_path / "words.toml", 8),
        check_data(f"{folder}#labels={tmp_path / 'words.toml'}", CLASSES, None, 8),
        check_data(str(folder), CLASSES, {"naevus": "nv", "scar": ""}, 8),
    ):
        assert (report.verdict, report.labels.excluded, report.unread) == ("usable", None, ())
        # Nor does their number follow from the files: those are counted that are used.
        assert report.shape.kinds == {"PNG": 43}
        assert sum(told.images or 0 for told in report.splits) == 43
        assert "fewer than 5 image(s) are left out by the label map." in report_text(report)


def test_five_images_that_the_label_map_leaves_out_are_counted(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path, lambda rows: [row.update(diagnosis="scar") for row in rows[:5]])

    assert check_data(str(folder), CLASSES, {"scar": "exclude"}, 8).labels.excluded == 5


def test_a_label_map_to_no_class_of_the_project_is_refused(tmp_path: Path) -> None:
    report = check_data(str(write_hospital(tmp_path)), CLASSES, {"naevus": "benign"}, 8)

    assert "the label map maps 1 word(s) to what is no class of the study (entry 1)" in only_reason(report)


def test_a_prepared_set_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    (folder.parent / "dataset.json").write_text(json.dumps(
        {"name": "x", "classes": ["mel", "nv"], "image_size": 8, "source_image_size": 8, "sites": ["klinik"],
         "licence": "", "recipe": "r"}))  # fmt: skip

    report = check_data(str(folder), CLASSES, None, 8)

    assert "its classes are mel, nv, the project's are bcc, mel, nv" in only_reason(report)


def test_a_damaged_card_above_the_folder_is_refused_without_the_place(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    (tmp_path / "dataset.json").write_text("{")

    reason = only_reason(checked(folder))

    assert reason.startswith("above the site's folder, dataset.json cannot be used")
    assert str(tmp_path) not in reason


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    report = checked(write_hospital(tmp_path, lambda rows: [row.update(split="train") for row in rows]))

    assert "no usable image in split test" in only_reason(report)
    assert [(told.split, told.images) for told in report.splits] == [("train", 39), ("val", 5)]


# Fault 23: corrupt or multi-frame DICOM.
def test_dicom_files_that_cannot_be_used_are_told_with_row_and_transfer_syntax(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    cut = swap_for_dicom(folder, "anna00")
    cut.write_bytes(cut.read_bytes()[:-10])
    (folder / "images" / "anna01.png").unlink()
    frames = dicom_of(np.zeros((16, 10), np.uint8), Rows=8, NumberOfFrames=2, PatientName="Meier^Anna")
    frames.save_as(folder / "images" / "anna01.dcm", enforce_file_format=True)
    lossless = swap_for_dicom(folder, "anna02")
    lossless.write_bytes(lossless.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))

    found = examine(str(folder), CLASSES, None, 8)

    assert checked(folder) == found.report
    # What is left out is not used, so that its names refuse nobody.
    assert found.report.verdict == "usable"
    assert [(entry.reason, entry.files) for entry in found.report.unread] == [
        (f"DICOM cannot be decoded (ValueError, {LITTLE})", None),
        ("DICOM encoding cannot be decoded here: transfer syntax 1.2.840.10008.1.2.9", None),
        (f"DICOM has 2 frames, expected one ({LITTLE})", None),
    ]
    assert {(entry.row, entry.file) for entry in found.details.entries} == {(2, "anna00"), (3, "anna01"), (4, "anna02")}


def test_a_set_of_nothing_but_bad_dicom_is_refused_with_the_transfer_syntax(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    for picture in list((folder / "images").iterdir()):
        path = swap_for_dicom(folder, picture.stem)
        path.write_bytes(path.read_bytes()[:-10])

    reason = only_reason(checked(folder))

    assert "no usable image in 44 row(s)" in reason
    assert LITTLE in reason


# Fault 24: identifying tags or burned-in text.
def test_identifying_tags_are_refused_by_name_and_the_rest_is_still_told(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    swap_for_dicom(folder, "anna00", PatientName="Meier^Anna", StudyDate="20200101")
    swap_for_dicom(folder, "anna01", PatientName="Meier^Anna", PatientBirthDate="19700101")
    swap_for_dicom(folder, "anna02", PatientID="7", PatientIdentityRemoved="YES")

    report = checked(folder)

    assert (
        "PatientBirthDate (0010,0030) in fewer than 5 file(s), PatientName (0010,0010) in fewer than 5 file(s). "
        "De-identify them" in only_reason(report)
    )
    assert [(tag.name, tag.kind, tag.files, tag.refuses) for tag in report.tags] == [
        ("PatientBirthDate (0010,0030)", "life", None, True),
        ("PatientName (0010,0010)", "person", None, True),
        ("PatientID (0010,0020)", "taken for a pseudonym", None, False),
        ("StudyDate (0008,0020)", "date", None, False),
    ]
    assert report.splits[0].images == 24
    # 41 would give the three away.
    assert report.shape.kinds == {"DICOM": None, "PNG": None}
    assert any("taken for a pseudonym" in warning for warning in report.warnings)
    assert any("dates, descriptions or device numbers" in warning for warning in report.warnings)


def test_a_tag_in_five_files_is_counted(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    for number in range(5):
        swap_for_dicom(folder, f"anna{number:02d}", PatientName="Meier^Anna")

    report = checked(folder)

    assert "PatientName (0010,0010) in 5 file(s)" in only_reason(report)
    assert (report.tags[0].files, report.shape.kinds) == (5, {"DICOM": 5, "PNG": 39})


def test_burned_in_text_is_refused(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    swap_for_dicom(folder, "anna00", BurnedInAnnotation="YES")

    found = examine(str(folder), CLASSES, None, 8)

    assert "BurnedInAnnotation (0028,0301) in fewer than 5 file(s)" in only_reason(found.report)
    assert [(entry.row, entry.file, entry.what) for entry in found.details.entries] == [
        (2, "anna00", "tells who the patient is: BurnedInAnnotation")
    ]


def test_a_cameras_notes_are_a_warning(tmp_path: Path) -> None:
    folder = write_hospital(tmp_path)
    exif = Image.Exif()
    exif[0x013B] = "Anna Meier"
    Image.new("RGB", (10, 8), (250, 0, 0)).save(folder / "images" / "anna00.png", exif=exif)

    report = checked(folder)

    assert (report.verdict, report.camera_notes) == ("usable", {"owner or author": None})
    assert "fewer than 5 picture(s) carry a camera's note (EXIF): owner or author" in report.warnings[0]
    # One in colour among 44.
    assert (report.shape.colour, report.shape.grey) == (None, None)
