"""How many pixels a side the images at a place really have, before any reader reduces them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from popmi_core.data.card import FILE_NAME, read_card
from popmi_core.data.decode import SUFFIXES, UnusableImage
from popmi_core.data.look import look_at
from popmi_core.data.medmnist import read_medmnist
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError

_LOOK = 50
# The central square of most of the raw archives' pictures, which are 200 x 150; others are brought to it.
_RAW_SIZE = 150


def native_size(spec: str, *, drawn: int, most: int) -> int:
    """Return the pixels per side at which the images of ``spec`` should be read to lose nothing, at most ``most``.

    An npz file's own size; of a prepared data set the size it was prepared at; of the raw dermoscopy archives
    150; of folders the median shorter side of fifty pictures, evenly over all there are: of every site and class, each
    by its number of pictures. A phantom is drawn at any size.

    Args:
        spec: As for ``load_site``, or a folder of several sites.
        drawn: Pixels per side of a phantom.
        most: Larger pictures are read at this size.

    Raises:
        DataError: If nothing can be read there.
    """
    parsed = SiteSpec.parse(spec)
    if spec == "phantom" or parsed.path is None:
        return min(drawn, most)
    shape = shape_of(parsed.path)
    if shape == "npz":
        return min(most, len(read_medmnist(parsed.path, image_size=None).images[0]))
    if shape == "raw":
        return min(most, _RAW_SIZE)
    cards = [folder for folder in (parsed.path, parsed.path.parent) if (folder / FILE_NAME).is_file()]
    if cards:
        return min(most, read_card(cards[0]).image_size)
    return min(most, _median_side(parsed.path))


def _median_side(folder: Path) -> int:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    # In this order a site's, or a class's, pictures lie together: the first of them would be of one.
    places = np.linspace(0, len(pictures) - 1, min(_LOOK, len(pictures))).round().astype(int)
    sides = []
    for file in (pictures[place] for place in places):
        try:
            look = look_at(file)
        except UnusableImage:
            continue  # the reader reports it with its row
        sides.append(min(look.width, look.height))
    if not sides:
        raise DataError(
            f"there is no picture to measure in {folder.name}. Name a folder with labels.csv and images/, class "
            "folders of pictures, or a MedMNIST npz file."
        )
    return int(np.median(sides))
