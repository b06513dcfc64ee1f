"""A site's images from whatever shape they lie in."""

from __future__ import annotations

from popmi_core.data.card import classes_above
from popmi_core.data.imagefolder import read_imagefolder
from popmi_core.data.images import SiteData
from popmi_core.data.medmnist import read_medmnist
from popmi_core.data.phantom import make_phantom_site
from popmi_core.data.pool import Pool
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
    return load_pool(site, spec, image_size=image_size).to_site(site, image_size=image_size)


def load_pool(site: str, spec: str, *, image_size: int | None) -> Pool:
    """Read one site's real images with everything known of them.

    Args:
        site: The site's name.
        spec: As for ``load_site``, but not the phantom.
        image_size: Pixels per side; None keeps an npz file's own and means 64 for anything else.

    Raises:
        DataError: If the images cannot be used; see the reader of that shape.
    """
    parsed = SiteSpec.parse(spec)
    path = parsed.path
    shape = None if path is None else shape_of(path)
    if path is None or shape not in ("site", "imagefolder", "npz"):
        raise DataError(
            f"site {site}: there are no images at {spec}. Name a folder with labels.csv and images/, class folders "
            "of pictures, or a MedMNIST npz file."
        )
    if shape == "npz":
        return read_medmnist(path, image_size=image_size, part=parsed.part, site=site)
    if shape == "imagefolder":
        return read_imagefolder(path, image_size=image_size or 64, classes=parsed.classes, site=site)
    return read_folder(path, image_size=image_size or 64, classes=parsed.classes or classes_above(path), site=site)
