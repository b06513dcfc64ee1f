"""From the values a DICOM file stores to grey levels between 0 and 1, as the standard's display pipeline has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from popmi_core.data.decode import UnusableImage

if TYPE_CHECKING:
    from pydicom import Dataset

Values = npt.NDArray[Any]
Levels = npt.NDArray[np.float64]

_EIGHT = 8


def stored_values(array: Values, dataset: Dataset, *, packed: bool) -> Values:
    """Return the numbers that the stored bits mean, as signed integers.

    Bits beside BitsStored (an overlay, or whatever a device left there) are dropped, and the sign bit counts.

    Args:
        array: What the decoder gave.
        dataset: The file's attributes.
        packed: True where a cell holds the stored bits below HighBit, as native and RLE data do; codecs give numbers.
    """
    bits = int(dataset.BitsStored)
    values: npt.NDArray[np.signedinteger[Any]] = array.astype(
        np.int32 if int(dataset.BitsAllocated) <= 2 * _EIGHT else np.int64
    )
    if packed:
        values >>= int(dataset.get("HighBit", bits - 1)) + 1 - bits
    values &= (1 << bits) - 1
    if int(dataset.get("PixelRepresentation", 0)) == 1:
        values -= (values >> (bits - 1)) << bits
    return values


def grey_levels(stored: Values, dataset: Dataset) -> Levels:
    """Return levels from 0 (black) to 1 (white) of a MONOCHROME1 or MONOCHROME2 image.

    Modality LUT or rescale (PS3.3 C.11.1), then VOI LUT or the first window (PS3.3 C.11.2), then MONOCHROME1 turned
    around. Without a window, an image of up to 8 bits keeps its range and a deeper one is stretched from its
    smallest to its largest value, padding left out.

    Raises:
        UnusableImage: If the window or a table is not what the standard allows.
    """
    values = _modality(stored, dataset)
    table = _first_item(dataset, "VOILUTSequence")
    little = is_little_endian(dataset)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if table is not None:
        depth = int(table.LUTDescriptor[2])
        levels = look_up(np.rint(values), table.LUTDescriptor, table.LUTData, little=little) / (2**depth - 1)
    elif center is not None and width is not None:
        levels = window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper())
    else:
        low, high = _span(stored, values, dataset)
        levels = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    return 1 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels


def window(values: Values, center: float, width: float, function: str) -> Levels:
    """Return levels from 0 to 1 by one of the standard's three functions.

    LINEAR: PS3.3 C.11.2.1.2.1; SIGMOID: C.11.2.1.3.1; LINEAR_EXACT: C.11.2.1.3.2.

    Raises:
        UnusableImage: If the function is another one, or the width too small for it.
    """
    least = 1 if function == "LINEAR" else np.nextafter(0, 1)
    if not width >= least or not np.isfinite([center, width]).all():
        raise UnusableImage("DICOM window is too narrow for its function")
    if function == "LINEAR":
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (x - c) / w)), written so that it cannot overflow.
        return 0.5 * (1 + np.tanh(2 * (values - center) / width))
    raise UnusableImage("DICOM window function is none of LINEAR, LINEAR_EXACT, SIGMOID")


def _modality(stored: Values, dataset: Dataset) -> Values:
    table = _first_item(dataset, "ModalityLUTSequence")
    if table is not None:
        return look_up(stored, table.LUTDescriptor, table.LUTData, little=is_little_endian(dataset))
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return stored
    return stored * (1.0 if slope is None else slope) + (intercept or 0.0)


def _span(stored: Values, values: Values, dataset: Dataset) -> tuple[float, float]:
    """Return the values that become black and white where the file names no window."""
    bits = int(dataset.BitsStored)
    if bits <= _EIGHT and _first_item(dataset, "ModalityLUTSequence") is None:
        lowest = -(1 << (bits - 1)) if int(dataset.get("PixelRepresentation", 0)) == 1 else 0
        ends = _modality(np.array([lowest, lowest + (1 << bits) - 1]), dataset)
        return float(ends.min()), float(ends.max())
    padding = _number(dataset, "PixelPaddingValue")
    seen = values if padding is None else values[stored != padding]
    seen = seen if seen.size else values
    return float(seen.min()), float(seen.max())


def look_up(values: Values, descriptor: Sequence[int], data: bytes | Sequence[int], *, little: bool) -> Levels:
    """Return what a lookup table maps each value to; values beyond its ends take its first and last entry.

    Modality LUT: PS3.3 C.11.1.1; VOI LUT: C.11.2.1.1; palette: C.7.6.3.1.5. Not pydicom's functions, which let an index
    above 255 wrap around where entries have 8 bits, and refuse an odd number of such entries.

    Args:
        values: What is looked up.
        descriptor: Number of entries (0 stands for 65536), the value the first one is for, bits per entry.
        data: The entries: as numbers, or packed in bytes or words.
        little: Byte order of words.

    Raises:
        UnusableImage: If there are fewer entries than the descriptor says, or they have neither 8 to 16 bits.
    """
    entries, first, depth = (int(number) for number in descriptor)
    entries = entries or 1 << 16
    if isinstance(data, bytes):
        # One byte an entry where the bytes would not do for two.
        table = np.frombuffer(data, ("<u2" if little else ">u2") if len(data) >= 2 * entries else "u1")[:entries]
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.int64))[:entries]
    if len(table) != entries or not _EIGHT <= depth <= 2 * _EIGHT:
        raise UnusableImage("DICOM lookup table is not what its descriptor says")
    levels: Levels = table.astype(np.float64)[np.clip(values.astype(np.int64) - first, 0, entries - 1)]
    return levels


def is_little_endian(dataset: Dataset) -> bool:
    """Say in which order the file holds the bytes of a word."""
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)


def _first_item(dataset: Dataset, keyword: str) -> Dataset | None:
    items = dataset.get(keyword)
    return items[0] if items else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    """Return an attribute's first value, or None where it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)
