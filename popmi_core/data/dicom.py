"""From a DICOM file to a picture, as the file says it is to be looked at."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from popmi_core.data import decode
from popmi_core.data.greyscale import grey_levels, is_little_endian, look_up, stored_values
from popmi_core.data.upright import turn_upright

if TYPE_CHECKING:
    from pydicom import Dataset

_MARK_AT, _MARK = 128, b"DICM"
_UID = re.compile(r"[0-9.]{1,64}")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_RLE = "1.2.840.10008.1.2.5"


def is_dicom(path: Path) -> bool:
    """Say whether a file carries the mark of DICOM files (PS3.10 7.1), whatever it is called.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK


def open_header(path: Path) -> Dataset:
    """Return a file's attributes without its pixels.

    Raises:
        UnusableImage: If the file is damaged, or pydicom is not installed.
    """
    return _read(path, stop_before_pixels=True)


def open_dicom(path: Path) -> Image.Image:
    """Return the picture in a DICOM file: 8 bits, grey or RGB, upright.

    Pixel spacing is not looked at (a model sees pixels, as of any picture); overlays and colour profiles are left out.

    Raises:
        UnusableImage: If the file is damaged, has several frames or none, or is encoded in a way that cannot be
            decoded here. The text names the transfer syntax, never the file or a value of it that tells of a patient.
    """
    dataset = _read(path)
    syntax = _syntax(dataset)
    try:
        _refuse_unusual(dataset, syntax)
        pixels = turn_upright(_pixels(dataset, syntax), dataset)
        return Image.fromarray(np.ascontiguousarray(pixels))
    except decode.UnusableImage:
        raise
    # pydicom and its plugins raise whatever a damaged file leads them to: each time it is one bad file, not a bad site.
    except Exception as error:
        raise decode.UnusableImage(f"DICOM cannot be decoded ({type(error).__name__}, {syntax})") from None


def _read(path: Path, *, stop_before_pixels: bool = False) -> Dataset:
    try:
        from pydicom import dcmread
    except ImportError:
        raise decode.UnusableImage('DICOM cannot be read here: install pydicom (pip install "popmi[site]")') from None
    # Its warnings quote values of the file, and logs may be shown around. For good: values are parsed when looked at.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    try:
        return dcmread(path, stop_before_pixels=stop_before_pixels)
    except FileNotFoundError:
        raise
    except Exception as error:  # as above
        raise decode.UnusableImage(f"DICOM header is damaged ({type(error).__name__})") from None


def _syntax(dataset: Dataset) -> str:
    """Return the transfer syntax in words, e.g. ``transfer syntax RLE Lossless (1.2.840.10008.1.2.5)``."""
    uid = dataset.file_meta.get("TransferSyntaxUID")
    if uid is None or not _UID.fullmatch(str(uid)):
        return "no transfer syntax"
    return f"transfer syntax {uid.name} ({uid})" if uid.name != uid else f"transfer syntax {uid}"


def _refuse_unusual(dataset: Dataset, syntax: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise decode.UnusableImage(f"DICOM has {frames} frames, expected one ({syntax})")
    if "PixelData" not in dataset:
        raise decode.UnusableImage(f"DICOM holds no pixel data ({syntax})")
    if int(dataset.Rows) * int(dataset.Columns) > decode.MAX_PIXELS:
        raise decode.UnusableImage(f"image has more than {decode.MAX_PIXELS // 1_000_000} million pixels")
    if dataset.PhotometricInterpretation not in (*_GREYS, *_COLOURS, "PALETTE COLOR"):
        raise decode.UnusableImage(f"DICOM photometric interpretation is not supported ({syntax})")
    try:
        available = get_decoder(dataset.file_meta.TransferSyntaxUID).is_available
    except (NotImplementedError, AttributeError):
        available = False
    if not available:
        raise decode.UnusableImage(f"DICOM encoding cannot be decoded here: {syntax}")


def _pixels(dataset: Dataset, syntax: str) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    uid = dataset.file_meta.TransferSyntaxUID
    kind = str(dataset.PhotometricInterpretation)
    packed = not get_decoder(uid).is_encapsulated or str(uid) == _RLE
    # pydicom drops the highest bits, as if HighBit were always BitsStored - 1.
    array = pixel_array(dataset, correct_unused_bits=not packed)
    if kind in _GREYS:
        return _eight_bits(grey_levels(stored_values(array, dataset, packed=packed), dataset))
    if kind == "PALETTE COLOR":
        return _eight_bits(_paint(stored_values(array, dataset, packed=packed), dataset))
    if array.ndim != 3 or array.shape[-1] != 3:
        raise decode.UnusableImage(f"DICOM colour image has not three samples a pixel ({syntax})")
    return _eight_bits(array / (2 ** int(dataset.BitsStored) - 1))


def _paint(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.float64]:
    """Return the colours, 0 to 1, that the file's palette has for the stored values (PS3.3 C.7.9)."""
    from pydicom.pixels.processing import apply_color_lut

    name = "{}PaletteColorLookupTable"
    if name.format("SegmentedRed") + "Data" in dataset:
        colours = apply_color_lut(stored, dataset)[..., :3]
        return np.asarray(colours / np.iinfo(colours.dtype).max)
    little = is_little_endian(dataset)
    channels = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = dataset[name.format(colour) + "Descriptor"].value
        table = dataset[name.format(colour) + "Data"].value
        channels.append(look_up(stored, descriptor, table, little=little) / (2 ** int(descriptor[2]) - 1))
    return np.stack(channels, axis=-1)


def _eight_bits(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
