"""A hospital's own words for findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from popmi_core.data import DERMOSCOPY_CLASSES, read_site
from popmi_core.data.labelmap import infer_classes, read_label_map
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]
WORDS = ("Melanoma", "naevus", "naevus", "melanoma", "naevus", "scar")


def _hospital(make_hospital: MakeHospital) -> Path:
    return make_hospital(
        [
            {"image": f"P{n}", "diagnosis": word, "split": "test" if n in (3, 4) else "train"}
            for n, word in enumerate(WORDS)
        ]
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("label_map.csv", "label,class\nmelanoma,mel\nNaevus,nv\nscar,exclude\n"),
        ("label_map.csv", "\ufeffmelanoma;mel\r\nnaevus;nv\r\nscar;exclude\r\n"),
        ("label_map.toml", 'melanoma = "mel"\nnaevus = "nv"\n"scar" = "exclude"\n'),
    ],
)
def test_a_map_in_the_folder_is_used(make_hospital: MakeHospital, name: str, content: str) -> None:
    folder = _hospital(make_hospital)
    (folder / name).write_text(content, encoding="utf-8")

    data = read_site(folder, image_size=4)

    assert [data.classes[target] for target in data.train.targets] == ["mel", "nv", "nv"]
    assert [(entry.row, entry.reason) for entry in data.skipped] == [(7, "the label map excludes this label")]
    assert data.classes == DERMOSCOPY_CLASSES


def test_a_map_may_be_given_as_a_dict(make_hospital: MakeHospital) -> None:
    data = read_site(
        _hospital(make_hospital),
        image_size=4,
        classes=("benign", "malignant"),
        label_map={"Naevus": "benign", "melanoma": "malignant", "scar": "benign"},
    )

    assert data.train.targets.tolist() == [1, 0, 0, 0]


def test_a_map_to_no_class_of_the_study_is_refused(make_hospital: MakeHospital) -> None:
    with pytest.raises(DataError, match=r"maps to 'benign', which the study does not have. Map to one of akiec"):
        read_site(_hospital(make_hospital), image_size=4, classes=DERMOSCOPY_CLASSES, label_map={"scar": "benign"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label_map.toml", "a = ", "label map cannot be read .TOMLDecodeError"),
        ("label_map.toml", "a = 3", "label map cannot be read .ValueError"),
        ("label_map.csv", "a,b,c\n", "label map cannot be read .ValueError"),
        ("label_map.csv", "a,nv\nA ,mel\n", "maps a word twice"),
    ],
)
def test_a_damaged_map_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(DataError, match=message):
        read_label_map(tmp_path / name, site="north")


def test_classes_nobody_named_are_the_dermoscopy_ones_where_they_fit_else_sorted() -> None:
    assert infer_classes(["nv", "MEL"], {}) == DERMOSCOPY_CLASSES
    assert infer_classes(["b", "a", "b"], {}) == ("a", "b")
    assert infer_classes(["x", "b"], {"X": "exclude"}) == ("b",)


def test_spellings_of_one_class_are_one_class() -> None:
    assert infer_classes(["cyst", "Cyst", "scar", " CYST "], {}) == ("CYST", "scar")
