"""From a picture file to ``uint8 [size, size, 3]``, one geometry for every site."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".dcm", ".dicom")
_DICOM_SUFFIXES = (".dcm", ".dicom")
MAX_PIXELS = 100_000_000


class UnusableImage(ValueError):
    """A picture that cannot be used; the text says why without naming the file."""


def read_image(path: Path, *, image_size: int) -> Pixels:
    """Return the picture's central square, ``uint8 [image_size, image_size, 3]``, RGB, upright.

    Large JPEGs are decoded at the smallest of their built-in scales that is at least three times the target, which
    costs a tenth of the time and is followed by the same antialiased reduction. A DICOM file, whatever it is called, is
    shown as it says; see ``popmi_core.data.dicom``.

    Raises:
        UnusableImage: If the file is missing, damaged, too large, has several frames or (a picture) more than 8 bits.
    """
    from popmi_core.data.dicom import is_dicom, open_dicom

    try:
        if is_dicom(path):
            return to_square(open_dicom(path), image_size=image_size)
        if path.suffix.lower() in _DICOM_SUFFIXES:
            raise UnusableImage("file has a DICOM name but no DICOM mark (DICM at byte 128)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb warning would quote sizes; the limit below decides
            with Image.open(path) as picture:
                _refuse_unusual(picture)
                picture.draft("RGB", (3 * image_size, 3 * image_size))
                return to_square(ImageOps.exif_transpose(picture), image_size=image_size)
    except FileNotFoundError:
        raise UnusableImage("image file is missing") from None
    except UnusableImage:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # Pillow's own text names the file, so only its kind is passed on.
        raise UnusableImage(f"image cannot be decoded ({type(error).__name__})") from None


def to_square(picture: Image.Image, *, image_size: int) -> Pixels:
    """Return the central square, reduced with an antialiased bilinear filter (Pillow widens it by the scale)."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    if side != image_size:
        square = square.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(square, dtype=np.uint8)


def resize_stack(images: Pixels, *, image_size: int) -> Pixels:
    """Return ``uint8 [n, image_size, image_size, 3]`` from images already in memory, same geometry as files."""
    if images.shape[1:3] == (image_size, image_size):
        return images
    resized = np.empty((len(images), image_size, image_size, 3), np.uint8)
    for position, pixels in enumerate(images):
        resized[position] = to_square(Image.fromarray(pixels), image_size=image_size)
    return resized


def encode_png(pixels: Pixels) -> bytes:
    """Return a PNG without metadata, so the same pixels always give the same bytes."""
    buffer = io.BytesIO()
    # Level 1 costs half of the default's time for 8 % more bytes.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _refuse_unusual(picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise UnusableImage(f"image has more than {MAX_PIXELS // 1_000_000} million pixels")
    if getattr(picture, "n_frames", 1) > 1:
        raise UnusableImage("image has more than one frame")
    if picture.mode.startswith(("I", "F")):
        raise UnusableImage("image has more than 8 bits per channel")
