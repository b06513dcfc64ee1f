"""npz files in MedMNIST's layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from popmi_core.data import DERMOSCOPY_CLASSES, load_site, locate
from popmi_core.data.medmnist import list_parts, read_medmnist
from popmi_core.errors import DataError

MakeNpz = Callable[..., Path]
REAL = Path(os.environ.get("POPMI_DATA", "/nowhere"))


def test_grey_pictures_become_rgb_and_splits_are_kept(make_npz: MakeNpz) -> None:
    path = make_npz()

    data = read_medmnist(path, image_size=9).to_site("blobs", image_size=9)

    assert [len(data.train), len(data.val), len(data.test), len(data.external)] == [60, 12, 18, 0]
    with np.load(path, allow_pickle=False) as archive:
        for channel in range(3):
            np.testing.assert_array_equal(data.val.images[..., channel], archive["val_images"])
        np.testing.assert_array_equal(data.test.targets, archive["test_labels"][:, 0])
    assert data.classes == ("0", "1", "2")


def test_a_split_without_pictures_is_named(make_npz: MakeNpz) -> None:
    path = make_npz(test_images=np.zeros((0, 9, 9), np.uint8), test_labels=np.zeros((0, 1), np.uint8))

    with pytest.raises(DataError, match="no usable image in split test"):
        read_medmnist(path, image_size=9).to_site("blobs", image_size=9)


def test_colour_pictures_and_flat_labels_are_read_at_another_size(make_npz: MakeNpz) -> None:
    arrays = {f"{split}_images": np.full((6, 12, 12, 3), 9, np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.array([0, 1, 1, 0, 1, 0]) for split in ("train", "val", "test")}
    arrays["class_names"] = np.array(["no, never", "yes"])

    pool = read_medmnist(make_npz(**arrays), image_size=5)

    assert pool.images[0].tolist() == [[[9, 9, 9]] * 5] * 5
    assert pool.classes == ("no, never", "yes")


@pytest.mark.parametrize("name", ["dermamnist.npz", "dermamnist_64.npz", "DermaMNIST_rebuilt_28.npz"])
def test_a_file_named_like_an_official_one_has_its_classes(make_npz: MakeNpz, name: str) -> None:
    assert read_medmnist(make_npz(name), image_size=None).classes == DERMOSCOPY_CLASSES


def _with_sites(make_npz: MakeNpz) -> Path:
    sites = {
        f"{split}_site": (np.arange(number) % 2).astype(np.uint8)
        for split, number in (("train", 60), ("val", 12), ("test", 18))
    }
    return make_npz(**sites, site_names=np.array(["west", "east"]))


def test_a_file_that_names_its_sites_is_a_study_of_these(make_npz: MakeNpz) -> None:
    path = _with_sites(make_npz)

    found = locate(str(path), image_size=9)
    data = load_site("west", found.sites["west"], image_size=9, phantom_images=35, seed=0)

    assert list_parts(path) == ("east", "west")
    assert list(found.sites) == ["east", "west"]
    assert (data.site, len(data.train), len(data.val), len(data.test)) == ("west", 30, 6, 9)


def test_an_unknown_part_is_refused(make_npz: MakeNpz) -> None:
    with pytest.raises(DataError, match="no part 'north'; its parts are east, west"):
        read_medmnist(_with_sites(make_npz), image_size=9, part="north")


def test_a_pickled_file_is_never_opened(make_npz: MakeNpz, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = make_npz(train_labels=np.array([Trap()] * 60, dtype=object))

    with pytest.raises(DataError, match=r"npz file cannot be read \(ValueError\)"):
        read_medmnist(path, image_size=9)

    assert not (tmp_path / "sprung").exists()


def test_a_cut_file_is_told(make_npz: MakeNpz) -> None:
    path = make_npz()
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(DataError, match=r"npz file cannot be read \(BadZipFile\)"):
        read_medmnist(path, image_size=9)


def test_a_single_array_is_no_npz_file(tmp_path: Path) -> None:
    with (tmp_path / "blobs.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))

    with pytest.raises(DataError, match="npz file cannot be read"):
        read_medmnist(tmp_path / "blobs.npz", image_size=9)


@pytest.mark.parametrize(
    ("arrays", "drop", "message"),
    [
        ({}, ["val_labels"], "npz file lacks val_labels"),
        ({"train_images": np.zeros((60, 9, 9), np.float32)}, [], r"train_images has dtype float32 and shape"),
        (
            {"val_images": np.zeros((12, 9, 9, 9), np.uint8)},
            [],
            r"val_images has dtype uint8 and shape \(12, 9, 9, 9\)",
        ),
        ({"test_labels": np.zeros((18, 14), np.uint8)}, [], r"test_labels has dtype uint8 and shape \(18, 14\)"),
        ({"test_labels": np.zeros((17, 1), np.uint8)}, [], "one whole number from 0 for each of 18"),
        ({"val_labels": np.full((12, 1), -1)}, [], "one whole number from 0"),
        ({"val_labels": np.full((12, 1), 0.5)}, [], "val_labels has dtype float64"),
        ({"class_names": np.array(["a", "b"])}, [], "a label is 2, but the file names 2 classes"),
    ],
)
def test_another_layout_is_refused(make_npz: MakeNpz, arrays: dict, drop: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"site blobs: .*{message}"):
        read_medmnist(make_npz(drop=drop, **arrays), image_size=9)


@pytest.mark.skipif(not (REAL / "pneumoniamnist_rebuilt_28.npz").is_file(), reason="POPMI_DATA has no such file")
def test_the_real_pneumonia_file_has_the_official_counts() -> None:
    found = locate(str(REAL / "pneumoniamnist_rebuilt_28.npz"), image_size=28)

    data = load_site("pneumonia", *found.sites.values(), image_size=28, phantom_images=35, seed=0)

    assert [len(data.train), len(data.val), len(data.test)] == [4708, 524, 624]
    assert found.classes == ("normal", "pneumonia")
