"""Which way up a DICOM image is shown: golden pictures of a letter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom

from popmi_core.data.decode import read_image

UPRIGHT = """
.####
.#...
.###.
.#...
.#...
"""
ON_ITS_HEAD = """
...#.
...#.
.###.
...#.
####.
"""
FEET_TO_THE_RIGHT = """
#....
#.#..
#.#..
#####
.....
"""
FEET_TO_THE_LEFT = """
.....
#####
..#.#
..#.#
....#
"""
MIRRORED = """
####.
...#.
.###.
...#.
...#.
"""


def _pixels(drawing: str) -> np.ndarray:
    return np.array([[255 * (sign == "#") for sign in line] for line in drawing.split()], np.uint8)


def _shown(tmp_path: Path, drawing: str, **told: object) -> str:
    seen = read_image(write_dicom(tmp_path / "a.dcm", _pixels(drawing), **told), image_size=5)[..., 0]
    return "\n" + "\n".join("".join("#" if level else "." for level in row) for row in seen) + "\n"


def test_the_first_stored_pixel_is_the_top_left_one(tmp_path: Path) -> None:
    assert _shown(tmp_path, UPRIGHT) == UPRIGHT


@pytest.mark.parametrize(
    ("orientation", "drawing"),
    [
        (["L", "F"], UPRIGHT),
        (["R", "H"], ON_ITS_HEAD),
        (["F", "R"], FEET_TO_THE_RIGHT),
        (["H", "L"], FEET_TO_THE_LEFT),
        (["LH", "FP"], UPRIGHT),  # the first letter is the main direction
        (["L", "P"], UPRIGHT),  # a cross-section has no feet
    ],
)
def test_the_feet_point_down(tmp_path: Path, orientation: list[str], drawing: str) -> None:
    assert _shown(tmp_path, drawing, PatientOrientation=orientation) == UPRIGHT


def test_a_view_from_behind_is_not_mirrored(tmp_path: Path) -> None:
    assert _shown(tmp_path, MIRRORED, PatientOrientation=["R", "F"]) == MIRRORED


def test_an_animals_letters_are_not_read_as_feet(tmp_path: Path) -> None:
    told = {"PatientOrientation": ["F", "R"], "AnatomicalOrientationType": "QUADRUPED"}
    assert _shown(tmp_path, UPRIGHT, **told) == UPRIGHT


@pytest.mark.parametrize(
    ("cosines", "drawing"),
    [
        ([1, 0, 0, 0, 0, -1], UPRIGHT),  # coronal: columns run to the feet
        ([-1, 0, 0, 0, 0.1, 0.99], ON_ITS_HEAD),
        ([0, 0, -1, 1, 0, 0], FEET_TO_THE_RIGHT),
        ([0, 0, 1, 1, 0, 0], FEET_TO_THE_LEFT),
        ([1, 0, 0, 0, 1, 0], UPRIGHT),  # axial
    ],
)
def test_the_direction_cosines_serve_where_letters_are_missing(
    tmp_path: Path, cosines: list[float], drawing: str
) -> None:
    assert _shown(tmp_path, drawing, ImageOrientationPatient=cosines) == UPRIGHT


@pytest.mark.parametrize(
    ("rotation", "flip", "drawing"),
    [
        (0, "N", UPRIGHT),
        (90, "N", FEET_TO_THE_RIGHT),
        (180, "N", ON_ITS_HEAD),
        (270, "N", FEET_TO_THE_LEFT),
        (0, "Y", MIRRORED),
    ],
)
def test_a_rotation_and_flip_for_display_are_followed(tmp_path: Path, rotation: int, flip: str, drawing: str) -> None:
    assert _shown(tmp_path, drawing, ImageRotation=rotation, ImageHorizontalFlip=flip) == UPRIGHT


def test_the_rotation_comes_before_the_flip_and_before_the_patients_own_directions(tmp_path: Path) -> None:
    told = {"ImageRotation": 90, "ImageHorizontalFlip": "Y", "PatientOrientation": ["R", "H"]}
    assert _shown(tmp_path, FEET_TO_THE_RIGHT, **told) == MIRRORED
