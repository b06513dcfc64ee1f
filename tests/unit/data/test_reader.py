"""A hospital's folder: what is used, what is left out, and what stops the site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popmi_core.data import DERMOSCOPY_CLASSES, SiteData, read_site
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]


def _all(data: SiteData) -> int:
    return sum(map(len, (data.train, data.val, data.test, data.external)))


def _row(image: str, diagnosis: str = "nv", split: str = "train", lesion: str = "") -> dict[str, str]:
    return {"image": image, "lesion_id": lesion, "diagnosis": diagnosis, "split": split}


def test_pictures_and_labels_belong_together(make_hospital: MakeHospital) -> None:
    rows = [_row("a", "nv"), _row("b", "mel"), _row("c", "bcc", "val"), _row("d", "bcc", "test")]

    data = read_site(make_hospital(rows), image_size=6)

    # The fixture paints picture i with red = 4 i.
    assert data.train.images[:, 3, 3, 0].tolist() == [0, 4]
    assert [DERMOSCOPY_CLASSES[target] for target in data.train.targets] == ["nv", "mel"]
    assert (data.val.images[0, 0, 0].tolist(), data.test.targets.tolist()) == ([8, 100, 50], [1])
    assert data.classes == DERMOSCOPY_CLASSES
    assert data.train.images.shape == (2, 6, 6, 3)
    assert (data.site, data.phantom, data.skipped) == ("hospital", False, ())


def test_without_a_split_lesions_stay_together_and_the_shares_are_seventy_ten_twenty(
    make_hospital: MakeHospital,
) -> None:
    folder = make_hospital(lesions=30)

    first, second = read_site(folder, image_size=4), read_site(folder, image_size=4)

    assert [len(first.train), len(first.val), len(first.test)] == [42, 6, 12]
    # Two pictures per lesion differ by 4 in red; both must be in the same set.
    for part in (first.train, first.val, first.test):
        lesions = part.images[:, 0, 0, 0].astype(int) // 4 // 2
        assert set(np.bincount(lesions)) <= {0, 2}
    np.testing.assert_array_equal(first.test.images, second.test.images)


def test_a_hospital_with_only_train_and_test_gets_validation_from_training(make_hospital: MakeHospital) -> None:
    rows = [_row(f"P{n}", split="test" if n % 5 == 0 else "train") for n in range(40)]

    data = read_site(make_hospital(rows), image_size=4)

    assert [len(data.train), len(data.val), len(data.test)] == [28, 4, 8]


def test_bad_rows_and_pictures_are_left_out_and_told_by_row_number(make_hospital: MakeHospital) -> None:
    rows = [_row(f"P{n}", split=("train", "train", "test")[n % 3]) for n in range(12)]
    folder = make_hospital(rows)
    (folder / "images" / "P0.png").unlink()
    (folder / "images" / "P4.png").write_bytes((folder / "images" / "P4.png").read_bytes()[:-30])
    (folder / "images" / "P7.png").write_text("not a picture")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "images" / "P9.png")

    data = read_site(folder, image_size=4)

    assert [(entry.row, entry.reason) for entry in data.skipped] == [
        (2, "image file is missing"),
        (6, "image cannot be decoded (OSError)"),
        (9, "image cannot be decoded (UnidentifiedImageError)"),
        (11, "image has more than 8 bits per channel"),
    ]
    assert _all(data) == 8


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link"])
def test_a_name_that_leads_out_of_the_folder_is_not_followed(make_hospital: MakeHospital, name: str) -> None:
    folder = make_hospital([_row("a"), _row("b", split="test"), _row("c")])
    Image.new("RGB", (8, 8)).save(folder.parent / "outside.png")
    (folder / "images" / "link.png").symlink_to(folder.parent / "outside.png")
    table = (folder / "labels.csv").read_text().replace("\nc,", f"\n{name},")
    (folder / "labels.csv").write_text(table)

    data = read_site(folder, image_size=4)

    assert [(entry.row, entry.reason) for entry in data.skipped] == [(4, "image name leads out of the site's folder")]


def test_a_name_no_file_system_takes_is_left_out(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a"), _row("b", split="test"), _row("c")])
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\nc,", f"\n{'x' * 5000},"))

    assert read_site(folder, image_size=4).skipped[0].reason == "image name is no file name"


def test_pictures_may_lie_beside_the_table_and_carry_their_ending(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a"), _row("b", split="test")])
    (folder / "images" / "a.png").rename(folder / "a.PNG")
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\nb,", "\nb.png,"))

    assert _all(read_site(folder, image_size=4)) == 2


def test_an_unmapped_label_stops_the_site_without_quoting_it(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a"), _row("b", "Meier, Anna"), _row("c", split="test")])

    with pytest.raises(
        DataError, match=r"site hospital: 1 label\(s\) in 1 row\(s\) have no class \(row 3\).*label_map.csv"
    ) as caught:
        read_site(folder, image_size=4, classes=DERMOSCOPY_CLASSES)

    assert "Meier" not in str(caught.value)


def test_two_spellings_of_one_picture_stop_the_site(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a"), _row("b", split="test"), _row("c")])
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\nc,", "\na.png,"))

    with pytest.raises(DataError, match=r"lead to the same picture \(rows 2, 4\)"):
        read_site(folder, image_size=4)


def test_no_usable_image_stops_the_site_and_says_why(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a"), _row("b", split="test")])
    for picture in (folder / "images").iterdir():
        picture.unlink()

    with pytest.raises(DataError, match=r"no usable image in 2 row\(s\). Skipped: image file is missing \(rows 2, 3\)"):
        read_site(folder, image_size=4)


def test_a_table_without_rows_stops_the_site(make_hospital: MakeHospital) -> None:
    folder = make_hospital([_row("a")])
    (folder / "labels.csv").write_text("image,diagnosis\n")

    with pytest.raises(DataError, match=r"no usable image in 0 row\(s\)"):
        read_site(folder, image_size=4)


def test_an_empty_test_split_stops_the_site(make_hospital: MakeHospital) -> None:
    with pytest.raises(DataError, match=r"no usable image in split test\. No row was skipped"):
        read_site(make_hospital([_row("a"), _row("b")]), image_size=4)


def test_too_few_lesions_to_split_stop_the_site(make_hospital: MakeHospital) -> None:
    with pytest.raises(DataError, match=r"2 lesion\(s\) or patient\(s\) are too few to cut into train, val, test"):
        read_site(make_hospital(lesions=2), image_size=4)


def test_an_external_set_needs_no_training_images(make_hospital: MakeHospital) -> None:
    data = read_site(make_hospital([_row("a", split="external"), _row("b", split="external")]), image_size=4)

    assert (len(data.external), len(data.train), data.train.images.shape) == (2, 0, (0, 4, 4, 3))
