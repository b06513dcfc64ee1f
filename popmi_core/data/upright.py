"""Which way up a DICOM image is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from popmi_core.data.decode import UnusableImage

if TYPE_CHECKING:
    from pydicom import Dataset

_SIDES = 2


def turn_upright(pixels: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Return the pixels ``[rows, columns, ...]`` as they are to be shown.

    The first stored pixel is the top left one (PS3.3 C.7.6.3.1.4). If the file holds a rotation and flip for display
    (Image Rotation, clockwise and first, then Image Horizontal Flip; PS3.3 C.10.6), they are followed. Otherwise the
    image is turned in quarter turns until the patient's feet point down, where Patient Orientation or Image Orientation
    (Patient) says that one of the image's axes runs along the body. It is never mirrored on that ground: the
    standard prescribes no side, and a mirrored photograph shows what nobody saw.

    Raises:
        UnusableImage: If the rotation is no multiple of 90 degrees.
    """
    rotation, flip = dataset.get("ImageRotation"), dataset.get("ImageHorizontalFlip")
    if rotation is not None or flip is not None:
        turns, rest = divmod(int(rotation or 0), 90)
        if rest:
            raise UnusableImage("DICOM image rotation is no multiple of 90 degrees")
        turned = np.rot90(pixels, -turns)
        return turned[:, ::-1] if str(flip or "N").upper() == "Y" else turned
    along_row, along_column = _directions(dataset)
    # np.rot90 turns anticlockwise: left becomes down, right becomes up.
    turns = {"H": 1, "F": 3}.get(along_row, 2 if along_column == "H" else 0)
    return np.rot90(pixels, turns)


def _directions(dataset: Dataset) -> tuple[str, str]:
    """Return the letter (H, F, or another) towards which rows and columns run; empty where the file does not say."""
    told = dataset.get("PatientOrientation")
    # Animals on four legs have other letters, in which F is no direction.
    if told and len(told) == _SIDES and dataset.get("AnatomicalOrientationType", "BIPED") == "BIPED":
        row, column = (str(side)[:1].upper() for side in told)
        return row, column
    cosines = dataset.get("ImageOrientationPatient")
    if cosines and len(cosines) == 3 * _SIDES:
        row, column = (_letter([float(value) for value in part]) for part in (cosines[:3], cosines[3:]))
        return row, column
    return "", ""


def _letter(direction: list[float]) -> str:
    """Return H or F for a direction that runs mainly along the body (z grows towards the head), else nothing."""
    main = int(np.argmax(np.abs(direction)))
    if main != _SIDES:
        return ""
    return "H" if direction[main] > 0 else "F"
