"""A site's own words for findings, in every shape of data, given by file, parameter or specification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popmi_core.data import SiteData, load_site
from popmi_core.data.labelmap import renamed
from popmi_core.data.load import load_pool
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]
CLASSES = ("bcc", "mel", "nv")


def _load(spec: str | Path, **options: object) -> SiteData:
    return load_site("north", str(spec), image_size=4, phantom_images=0, seed=0, **options)  # type: ignore[arg-type]


def _hospital(make_hospital: MakeHospital) -> Path:
    words = ("Melanom", "Naevus", "Naevus", "Melanom", "scar", "burn")
    return make_hospital(
        [
            {"image": f"P{n}", "diagnosis": word, "split": "test" if n in (2, 3) else "train"}
            for n, word in enumerate(words)
        ]
    )


def _folders(root: Path, *labels: str) -> Path:
    for place, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (6, 6), (place * 40, number, 0)).save(root / label / f"{number}.png")
    return root


def test_a_specification_carries_the_file_of_a_label_map() -> None:
    spec = SiteSpec(Path("/data/north"), part="west", classes=("a,b", "c"), label_map=Path("/etc/popmi/words.toml"))

    assert str(spec) == "/data/north#part=west#labels=/etc/popmi/words.toml#classes=a%2Cb,c"
    assert SiteSpec.parse(str(spec)) == spec
    assert SiteSpec.parse("/data/north").label_map is None


@pytest.mark.parametrize("way", ["specification", "parameter", "words"])
def test_classes_are_the_projects_in_its_order_whichever_way_the_map_comes(
    make_hospital: MakeHospital, tmp_path: Path, way: str
) -> None:
    folder = _hospital(make_hospital)
    file = tmp_path / "words.toml"
    file.write_text('melanom = "mel"\nnaevus = "nv"\nscar = ""\nburn = "ignore"\n')
    words = {"melanom": "mel", "naevus": "nv", "scar": "", "burn": "ignore"}
    spec = SiteSpec(folder, label_map=file if way == "specification" else None)

    data = _load(str(spec), classes=CLASSES, label_map={"parameter": file, "words": words}.get(way))

    assert data.classes == CLASSES
    assert data.train.targets.tolist() == [1, 2]
    assert [(entry.row, entry.reason) for entry in data.skipped] == [
        (6, "the label map excludes this label"),
        (7, "the label map excludes this label"),
    ]


def test_a_map_in_the_specification_wins_over_the_parameter(make_hospital: MakeHospital, tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text("melanom,mel\nnaevus,nv\nscar,exclude\nburn,exclude\n")

    data = _load(str(SiteSpec(_hospital(make_hospital), label_map=file)), classes=CLASSES, label_map={"naevus": "bcc"})

    assert data.train.targets.tolist() == [1, 2]


def test_words_without_a_class_are_counted_with_their_rows_and_the_next_step(make_hospital: MakeHospital) -> None:
    with pytest.raises(
        DataError,
        match=r"site north: 3 label\(s\) in 4 row\(s\) have no class \(rows 2, 5, 6, 7\)\. The study's classes are "
        r"bcc, mel, nv\. Map the site's words onto them in label_map.csv or label_map.toml",
    ) as caught:
        _load(_hospital(make_hospital), classes=CLASSES, label_map={"naevus": "nv"})
    assert "scar" not in str(caught.value)


def test_class_folders_have_words_too(tmp_path: Path) -> None:
    folder = _folders(tmp_path / "skin", "Melanom", "Naevus", "Narben")
    words = {"melanom": "mel", "naevus": "nv", "narben": "exclude"}

    known = _load(folder, classes=CLASSES, label_map=words)
    alone = _load(folder, label_map=words)

    assert (known.classes, alone.classes) == (CLASSES, ("mel", "nv"))
    # Folder Melanom is painted with red 0, Naevus with red 40.
    assert (known.train.images[:, 0, 0, 0] == (known.train.targets - 1) * 40).all()
    assert [entry.row for entry in known.skipped] == list(range(21, 31))  # Narben comes last in the listing
    with pytest.raises(DataError, match=r"1 label\(s\) in 10 row\(s\) have no class \(rows 21, 22, .* and 2 more\)"):
        _load(folder, classes=CLASSES, label_map={"melanom": "mel", "naevus": "nv"})


def test_an_npz_files_classes_have_words_too(make_npz: Callable[..., Path]) -> None:
    path = make_npz(class_names=np.array(["Melanom", "Naevus", "Narben"]))
    plain = _load(path)

    data = _load(path, classes=CLASSES, label_map={"melanom": "mel", "naevus": "nv", "narben": "exclude"})

    places = np.array([1, 2, -1])[plain.train.targets]
    assert data.train.targets.tolist() == places[places >= 0].tolist()
    np.testing.assert_array_equal(data.train.images, plain.train.images[places >= 0])
    assert len(data.skipped) == 30  # a third of 90, by position
    assert data.skipped[0].row == 3


def test_an_npz_file_without_names_takes_the_projects_where_there_are_as_many(make_npz: Callable[..., Path]) -> None:
    path = make_npz()

    assert _load(path, classes=CLASSES).classes == CLASSES
    with pytest.raises(
        DataError,
        match=r"3 label\(s\) in 90 row\(s\) have no class \(rows 1, 2, 3, .* classes are mel, nv\. .* label_map",
    ):
        _load(path, classes=("mel", "nv"))


def test_the_specifications_classes_win_over_the_parameters(make_hospital: MakeHospital) -> None:
    folder = make_hospital(lesions=30)

    pool = load_pool("north", str(SiteSpec(folder, classes=CLASSES)), image_size=4, classes=("nv",))

    assert pool.classes == CLASSES


def test_names_keep_their_order_when_they_are_renamed() -> None:
    assert renamed(("b", "A", "c"), {}) == ("b", "A", "c")
    assert renamed(("b", "A", "c"), {"a": "x", "C": "ignore", "b": "x"}) == ("x",)
