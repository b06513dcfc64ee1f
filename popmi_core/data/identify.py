"""Does a file tell who the patient is? A check by the list of PS3.15, not an anonymiser.

Only the names of attributes are kept, never a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image

from popmi_core.data.confidential import BURNED_IN, MAY_BE_DUMMY, OTHER_NAMES, PRIVATE, REFUSED_KINDS, TOLD_KINDS
from popmi_core.data.decode import Pixels, UnusableImage, read_image
from popmi_core.data.dicom import is_dicom, open_header
from popmi_core.errors import DataError
from popmi_core.limits import tell_number

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

_LOOKED_AT = frozenset(REFUSED_KINDS) | frozenset(TOLD_KINDS)
# A repeating group: pydicom gives its elements no keyword.
_OVERLAYS, _OVERLAY_DATA = range(0x6000, 0x6020, 2), 0x3000
_EXIF = {
    "position": (),
    "owner or author": (0x013B, 0x8298, 0x9C9D, 0xA430),
    "serial number": (0xA431, 0xA435, 0xC62F),
    "comment": (0x010E, 0x9286, 0x9C9C),
}


@dataclass(frozen=True)
class Marks:
    """What in one DICOM file tells of the patient: names of attributes, never values.

    Attributes:
        identifying: Filled attributes for which the file must not be used, burned-in text and private attributes.
        told: Filled attributes that the profile removes as well, but that name nobody.
        pseudonyms: Attributes taken for dummies, because the file says that identity was removed.
    """

    identifying: frozenset[str]
    told: frozenset[str]
    pseudonyms: frozenset[str]


def marks_of(path: Path) -> Marks:
    """Return what in a DICOM file tells of the patient.

    Raises:
        UnusableImage: If its attributes cannot be read to the end.
    """
    header = open_header(path)
    try:
        found = set(_filled(header))
        removed = str(header.get("PatientIdentityRemoved") or "").upper() == "YES"
    except Exception as error:  # a damaged attribute raises whatever it leads pydicom to
        raise UnusableImage(f"DICOM header is damaged ({type(error).__name__})") from None
    pseudonyms = found & MAY_BE_DUMMY if removed else set()
    return Marks(
        frozenset((found - pseudonyms) & set(REFUSED_KINDS)), frozenset(found & set(TOLD_KINDS)), frozenset(pseudonyms)
    )


def exif_marks(path: Path) -> frozenset[str]:
    """Return which kinds of identifying notes a camera left in a picture; of a damaged one, none."""
    try:
        with Image.open(path) as picture:
            exif = picture.getexif()
            notes = {**dict(exif), **exif.get_ifd(ExifTags.IFD.Exif)}
            position = any(bool(value) for key, value in exif.get_ifd(ExifTags.IFD.GPSInfo).items() if key)
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, Image.DecompressionBombError):
        return frozenset()
    found = {kind for kind, tags in _EXIF.items() if any(_says_something(notes.get(tag)) for tag in tags)}
    return frozenset(found | ({"position"} if position else set()))


def read_checked(path: Path, *, image_size: int, seen: list[Marks]) -> Pixels:
    """Return the picture as ``read_image`` does; what a DICOM file tells of its patient is added to ``seen``.

    Raises:
        UnusableImage: If the picture cannot be read, or a DICOM file not be checked.
    """
    pixels = read_image(path, image_size=image_size)
    if is_dicom(path):
        seen.append(marks_of(path))
    return pixels


def refuse_identifying(seen: Iterable[Marks], *, site: str) -> None:
    """Stop where DICOM files that would be used tell who their patients are.

    Raises:
        DataError: With the attributes and the number of files each is filled in, a small one hidden: it may travel.
    """
    counts = Counter(name for marks in seen for name in marks.identifying)
    if counts:
        told = ", ".join(f"{name_tag(name)} in {tell_number(files)} file(s)" for name, files in sorted(counts.items()))
        raise DataError(
            f"site {site}: DICOM files tell who the patients are: {told}. De-identify them (DICOM PS3.15, Basic "
            "Application Level Confidentiality Profile; for burned-in text also its Clean Pixel Data option) and point "
            "POPMI at the copies. POPMI checks, it does not anonymise."
        )


def name_tag(name: str) -> str:
    """Return an attribute's name with its number, e.g. ``PatientName (0010,0010)``."""
    from pydicom.datadict import tag_for_keyword

    number = tag_for_keyword(name) if name.isalpha() and name != "OverlayData" else None
    return name if number is None else f"{name} ({number >> 16:04x},{number & 0xFFFF:04x})"


def _filled(dataset: Dataset) -> Iterator[str]:
    """Yield the names under which an attribute of the file, or of a sequence in it, counts."""
    for element in dataset:
        if element.tag.is_private:
            if not element.tag.is_private_creator and _says_something(element.value):
                yield PRIVATE
        elif element.VR == "SQ":
            if element.keyword in _LOOKED_AT and len(element.value):
                yield element.keyword
            for item in element.value:
                yield from _filled(item)
        elif _says_something(element.value):
            yield from _names(element)


def _names(element: DataElement) -> Iterator[str]:
    if element.keyword == BURNED_IN:
        if str(element.value).upper() == "YES":
            yield BURNED_IN
    elif element.keyword in _LOOKED_AT:
        yield element.keyword
    elif element.VR == "PN":
        yield OTHER_NAMES
    elif element.tag.group in _OVERLAYS and element.tag.element == _OVERLAY_DATA:
        yield "OverlayData"


def _says_something(value: object) -> bool:
    # An empty name may still hold the signs between its parts.
    return value is not None and bool(str(value).strip(" \0^=[]'\",\\")) and value != b""
