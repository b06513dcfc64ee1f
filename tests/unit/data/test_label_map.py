"""A hospital's own words for findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from popmi_core.data import DERMOSCOPY_CLASSES, ImageSet, SiteData, read_site
from popmi_core.data.labelmap import LabelMap, infer_classes, onto_classes, read_label_map, same_classes
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
    with pytest.raises(
        DataError, match=r"maps 1 word\(s\) to what is no class of the study \(entry \d+\)\. Map to one of akiec"
    ):
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


def site_of(classes, targets):
    images = np.arange(len(targets), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    few = ImageSet(images, np.array(targets, np.int64))
    return SiteData("north", classes, few, few.subset(np.array([0])), few, ImageSet.empty(2))


def test_targets_are_brought_into_the_order_of_a_models_outputs():
    found = onto_classes(site_of(("Nevus", "melanoma"), [0, 1, 1]), ("melanoma", "bcc", "nevus"))
    assert found.classes == ("melanoma", "bcc", "nevus")
    assert found.train.targets.tolist() == [2, 0, 0]
    assert found.val.targets.tolist() == [2]
    assert (found.train.images[:, 0, 0, 0] == [0, 1, 2]).all()
    assert len(found.external) == 0


def test_classes_that_a_model_does_not_know_are_refused_where_there_are_images_of_them():
    with pytest.raises(DataError, match=r"site north has images of other, the model knows a, b\..*label map"):
        onto_classes(site_of(("a", "other"), [0, 1]), ("a", "b"))
    assert onto_classes(site_of(("a", "other"), [0, 0]), ("b", "a")).train.targets.tolist() == [1, 1]


def test_lists_of_places_only_say_nothing_of_names():
    assert onto_classes(site_of(("0", "1"), [0, 1]), ("b", "a")).train.targets.tolist() == [0, 1]
    kept = onto_classes(site_of(("b", "a"), [0, 1]), ("0", "1"))
    assert (kept.train.targets.tolist(), kept.classes) == ([0, 1], ("b", "a"))
    alike = onto_classes(site_of(("A", "a"), [0, 1]), ("A", "a"))
    assert alike.train.targets.tolist() == [0, 1]
    assert same_classes(("A b", "c"), ("a  B", "C"))
    assert not same_classes(("a", "b"), ("b", "a"))


def test_a_map_with_its_columns_swapped_tells_entries_not_the_sites_words() -> None:
    with pytest.raises(DataError, match=r"maps 2 word\(s\) to .* \(entry 1, 3\)") as told:
        LabelMap(("mel", "nv"), {"nv": "Meierfleck", "mel": "mel", "x": "Muttermal"}, site="north")
    assert "Meierfleck" not in str(told.value)


def test_of_many_wrong_entries_eight_are_told() -> None:
    with pytest.raises(DataError, match=r"entry 1, 2, 3, 4, 5, 6, 7, 8 and more"):
        LabelMap(("mel", "nv"), {f"w{n}": "x" for n in range(9)}, site="north")
