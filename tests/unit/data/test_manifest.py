"""labels.csv as hospitals write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from popmi_core.data import manifest
from popmi_core.data.manifest import name_rows, read_manifest
from popmi_core.errors import DataError


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"image,diagnosis,sex\na,nv,f\nb,mel,m\n",
        b"\xef\xbb\xbfImage;Diagnosis;Sex\r\na;nv;f\r\nb;mel;m\r\n",
        b"IMAGE\tDIAGNOSIS\tSEX\na\tnv\tf\nb\tmel\tm\n",
        "image,diagnosis,sex\na,nv,f\nb,mel,m\n".encode("utf-16"),
        b"isic_id,dx,sex\na,nv,f\n\nb,mel,m\n,,\n",
    ],
    ids=["plain", "semicolon, byte order mark, CRLF, capitals", "tab", "utf-16", "other names, blank lines"],
)
def test_every_spreadsheet_program_s_table_gives_the_same_rows(tmp_path: Path, content: bytes) -> None:
    rows = read_manifest(_write(tmp_path, content), site="north").rows

    assert [(row.image, row.diagnosis, row.extra["sex"]) for row in rows] == [("a", "nv", "f"), ("b", "mel", "m")]


def test_windows_letters_are_read(tmp_path: Path) -> None:
    rows = read_manifest(_write(tmp_path, "image,diagnosis\na,n\xe6vus\n".encode("cp1252")), site="north").rows

    assert rows[0].diagnosis == "n\xe6vus"


def test_row_numbers_are_those_a_spreadsheet_shows(tmp_path: Path) -> None:
    text = 'image,diagnosis,remark\na,nv,"two\nlines"\n\nb,,x\nc,mel\nd,bcc,y\n'

    read = read_manifest(_write(tmp_path, text), site="north")

    assert [(row.number, row.image) for row in read.rows] == [(2, "a"), (6, "d")]
    assert [(entry.row, entry.reason) for entry in read.skipped] == [
        (4, "diagnosis is empty"),
        (5, "has 2 cells, the header has 3"),
    ]


def test_an_unknown_split_is_skipped_and_reported(tmp_path: Path) -> None:
    text = "image,diagnosis,split\na,nv,Training\nb,nv,holiday\nc,nv,validation\nd,nv,external\n"

    read = read_manifest(_write(tmp_path, text), site="north")

    assert [row.split for row in read.rows] == ["train", "val", "external"]
    assert read.skipped[0].reason == "split is none of train, val, test, external"


def test_a_patient_is_the_wider_group_than_a_lesion(tmp_path: Path) -> None:
    text = "image,diagnosis,lesion_id,patient_id\na,nv,L1,P1\nb,nv,L2,P1\nc,nv,L3,\nd,nv,,\n"

    groups = [row.group for row in read_manifest(_write(tmp_path, text), site="north").rows]

    assert groups == ["patient P1", "patient P1", "lesion L3", "row 5"]


def test_an_image_named_twice_stops_the_site(tmp_path: Path) -> None:
    path = _write(tmp_path, "image,diagnosis\nanna,nv\nb,nv\nanna,mel\n")

    with pytest.raises(DataError, match=r"site north: .* 1 image\(s\) more than once \(rows 2, 4\)") as caught:
        read_manifest(path, site="north")

    assert "anna" not in str(caught.value)


def test_a_lesion_in_two_splits_stops_the_site(tmp_path: Path) -> None:
    path = _write(tmp_path, "image,diagnosis,lesion_id,split\na,nv,L1,train\nb,nv,L1,test\nc,nv,L2,test\n")

    with pytest.raises(DataError, match=r"1 lesion\(s\) or patient\(s\) lie in more than one split \(rows 2, 3\)"):
        read_manifest(path, site="north")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty"),
        (b"anna,nv\nb,mel\n", "no column 'image' and no column 'diagnosis' among its 2"),
        (b'image,diagnosis\na,"nv\n', "labels.csv is no table"),
        (b"image,diagnosis\n\x00\x00\n", "labels.csv is not text"),
    ],
)
def test_what_is_no_table_of_labels_stops_the_site(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(_write(tmp_path, content), site="north")

    assert "anna" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site north: labels.csv cannot be read \(No such file"):
        read_manifest(tmp_path / "labels.csv", site="north")


def test_a_table_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_MAX_BYTES", 10)

    with pytest.raises(DataError, match="larger than"):
        read_manifest(_write(tmp_path, "image,diagnosis\n"), site="north")


def test_many_rows_are_named_briefly() -> None:
    assert name_rows([7]) == "row 7"
    assert name_rows([9, 4, 4]) == "rows 4, 9"
    assert name_rows(range(2, 20), most=3) == "rows 2, 3, 4 and 15 more"


def test_a_row_that_names_only_its_lesion_joins_the_patient_other_rows_name_for_it(tmp_path: Path) -> None:
    text = "image,patient_id,lesion_id,dx\na,P1,L1,nv\nb,,L1,nv\nc,P1,L2,nv\nd,,L3,nv\n"

    groups = [row.group for row in read_manifest(_write(tmp_path, text), site="north").rows]

    assert groups == ["patient P1", "patient P1", "patient P1", "lesion L3"]


def test_lesions_that_are_numbered_anew_for_every_patient_tell_nothing(tmp_path: Path) -> None:
    text = "image,patient_id,lesion_id,dx\na,P1,1,nv\nb,P2,1,nv\nc,,1,nv\n"

    groups = [row.group for row in read_manifest(_write(tmp_path, text), site="north").rows]

    assert groups == ["patient P1", "patient P2", "lesion 1"]


def test_a_patient_torn_over_a_row_that_names_only_the_lesion_is_refused(tmp_path: Path) -> None:
    text = "image,patient_id,lesion_id,dx,split\na,P1,L1,nv,train\nb,,L1,nv,test\n"

    with pytest.raises(DataError, match=r"lie in more than one split \(rows 2, 3\)"):
        read_manifest(_write(tmp_path, text), site="north")
