"""A site's images from whatever shape they lie in."""

from __future__ import annotations

from popmi_core.data.card import FILE_NAME, read_card
from popmi_core.data.images import SiteData
from popmi_core.data.phantom import make_phantom_site
from popmi_core.data.reader import read_site
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
    if path is None or not path.exists():
        raise DataError(f"site {site}: its data {spec} do not exist. Name a folder with labels.csv and images/.")
    if (path / "labels.csv").is_file():
        classes = parsed.classes
        if classes is None and (path.parent / FILE_NAME).is_file():
            classes = read_card(path.parent).classes
        return read_site(path, image_size=image_size, classes=classes, site=site)
    raise DataError(f"site {site}: not yet")
