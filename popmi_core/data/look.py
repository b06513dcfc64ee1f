"""What a file says of itself before its pixels are used: kind, size, colour, and what tells of the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from popmi_core.data.decode import UnusableImage
from popmi_core.data.dicom import is_dicom, open_header
from popmi_core.data.identify import Marks, exif_marks, marks_of

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")


@dataclass(frozen=True)
class Look:
    """One file, without opening its pixels.

    Attributes:
        kind: ``DICOM``, ``JPEG``, ``PNG``, ...
        width: Columns.
        height: Rows.
        colour: False for grey pictures.
        marks: What a DICOM file tells of its patient.
        exif: Kinds of identifying notes a camera left in any other picture.
    """

    kind: str
    width: int
    height: int
    colour: bool
    marks: Marks | None = None
    exif: frozenset[str] = frozenset()


def look_at(path: Path) -> Look:
    """Return what a file says of itself.

    Raises:
        UnusableImage: If it is missing, no picture, or its header damaged.
    """
    try:
        if is_dicom(path):
            header = open_header(path)
            colour = not str(header.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
            return Look("DICOM", int(header.Columns), int(header.Rows), colour, marks_of(path))
        with Image.open(path) as picture:
            kind, size, mode = picture.format or "picture", picture.size, picture.mode
        return Look(kind, *size, mode not in _GREY_MODES, exif=exif_marks(path))
    except (AttributeError, OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UnusableImage):
            raise
        raise UnusableImage(f"header cannot be read ({type(error).__name__})") from None
