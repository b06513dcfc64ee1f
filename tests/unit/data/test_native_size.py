"""At which size images are read to lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from popmi_core.data.card import DatasetCard, write_card
from popmi_core.data.native import native_size
from popmi_core.errors import DataError


def _pictures(folder, sizes):
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")


def test_a_file_is_read_at_its_own_size(tmp_path):
    labels = np.zeros((2, 1), np.uint8)
    splits = {f"{split}_{kind}": value for split in ("train", "val", "test")
              for kind, value in (("images", np.zeros((2, 28, 28), np.uint8)), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "cells.npz", **splits)
    assert native_size(str(tmp_path / "cells.npz"), drawn=64, most=256) == 28


def test_a_folder_is_read_at_its_median_shorter_side_and_no_larger_than_asked(tmp_path):
    _pictures(tmp_path / "site" / "images", [(100, 80), (300, 90), (70, 400)])
    (tmp_path / "site" / "labels.csv").write_text("image,diagnosis\n")
    assert native_size(str(tmp_path / "site"), drawn=64, most=256) == 80
    assert native_size(str(tmp_path / "site"), drawn=64, most=50) == 50


def test_of_several_sites_all_are_looked_at_each_by_its_number_of_pictures(tmp_path):
    for site, count, side in (("a", 60, 20), ("b", 80, 60), ("c", 60, 90)):
        _pictures(tmp_path / site / "images", [(side, side + 5)] * count)
        (tmp_path / site / "labels.csv").write_text("image,diagnosis\n")
    # The first fifty pictures are all of site a; the median picture is of site b.
    assert native_size(str(tmp_path), drawn=64, most=256) == 60


def test_of_class_folders_all_are_looked_at(tmp_path):
    _pictures(tmp_path / "benign", [(30, 30)] * 51)
    _pictures(tmp_path / "malignant", [(70, 70)] * 52)
    assert native_size(str(tmp_path), drawn=64, most=256) == 50  # halfway, of 25 pictures each


def test_a_prepared_set_is_read_at_the_size_it_was_prepared_at(tmp_path):
    card = DatasetCard(
        name="x", classes=("a", "b"), image_size=96, source_image_size=128, sites=("one",), licence="", recipe="r"
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "labels.csv").write_text("image,diagnosis\n")
    write_card(tmp_path, card)
    assert native_size(str(tmp_path), drawn=64, most=256) == 96
    assert native_size(str(tmp_path / "one"), drawn=64, most=256) == 96


def test_the_raw_archives_are_read_at_150_pixels(tmp_path):
    (tmp_path / "dermoscopy_index.csv").write_text("")
    assert native_size(str(tmp_path), drawn=64, most=256) == 150


def test_a_phantom_is_drawn_as_large_as_asked():
    assert native_size("phantom", drawn=64, most=256) == 64
    assert native_size("phantom:phantom_ruler", drawn=64, most=50) == 50


def test_damaged_pictures_are_passed_over_and_a_place_without_any_is_refused(tmp_path):
    _pictures(tmp_path / "a", [(60, 60)])
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    assert native_size(str(tmp_path), drawn=64, most=256) == 60
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture to measure in empty"):
        native_size(str(tmp_path / "empty"), drawn=64, most=256)
