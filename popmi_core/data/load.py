"""A site's images from whatever shape they lie in."""

from __future__ import annotations

from pathlib import Path

from popmi_core.data.card import FILE_NAME, read_card
from popmi_core.data.imagefolder import read_imagefolder
from popmi_core.data.images import SiteData
from popmi_core.data.medmnist import read_medmnist
from popmi_core.data.phantom import make_phantom_site
from popmi_core.data.reader import read_folder
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError


def load_site(site: str, spec: str, *, image_size: int, phantom_images: int, seed: int) -> SiteData:
    """Read (or draw) one site's images.

    Args:
        site: The site's name, for messages and records.
        spec: One of ``Federation.sites``: ``phantom:<site>``, a folder with ``labels.csv``, an ImageFolder or a
            MedMNIST npz file.
        image_size: Pixels per side.
        phantom_images: Images a phantom site draws, all splits together.
        seed: Seed of the phantom; real data never depend on it.

    Raises:
        DataError: If the images cannot be used; see the reader of that shape.
    """
    parsed = SiteSpec.parse(spec)
    if parsed.phantom is not None:
        return make_phantom_site(parsed.phantom, num_images=phantom_images, image_size=image_size, seed=seed)
    path = parsed.path
    shape = None if path is None else shape_of(path)
    if path is None or shape not in ("site", "imagefolder", "npz"):
        raise DataError(
            f"site {site}: there are no images at {spec}. Name a folder with labels.csv and images/, class folders "
            "of pictures, or a MedMNIST npz file."
        )
    if shape == "npz":
        pool = read_medmnist(path, image_size=image_size, part=parsed.part, site=site)
    elif shape == "imagefolder":
        pool = read_imagefolder(path, image_size=image_size, classes=parsed.classes, site=site)
    else:
        pool = read_folder(path, image_size=image_size, classes=parsed.classes or _card_classes(path), site=site)
    return pool.to_site(site, image_size=image_size)


def _card_classes(folder: Path) -> tuple[str, ...] | None:
    """Return the study's classes from the dataset.json above a prepared site's folder, if there is one."""
    return read_card(folder.parent).classes if (folder.parent / FILE_NAME).is_file() else None
