"""Where the images lie: a path, ``POPMI_DATA``, ``data/``, or the built-in phantom."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from popmi_core.data.card import FILE_NAME, DatasetCard, classes_above, read_card
from popmi_core.data.imagefolder import list_classes
from popmi_core.data.labelmap import unite_classes
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.medmnist import list_parts, peek_classes
from popmi_core.data.medmnist_index import find_set
from popmi_core.data.phantom import PHANTOM_SITES
from popmi_core.data.prepare.dermoscopy import INDEX, RECIPE, SHA256, prepare_dermoscopy
from popmi_core.data.reader import classes_of_folder
from popmi_core.data.shape import Shape, nested_sets, shape_of, site_folders
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError


@dataclass(frozen=True)
class Federation:
    """The sites of a study and where each finds its images.

    Attributes:
        name: Short name of the data set, ``phantom`` where it is one.
        classes: The study's classes, in the order of the model's outputs.
        sites: Site name -> what ``load_site`` takes: a folder, an npz file or ``phantom:<site>``; sorted by name.
        external: The same for a test set no site trains on, or None.
        phantom: True where no image shows a patient.
        licence: Licence of the images.
    """

    name: str
    classes: tuple[str, ...]
    sites: dict[str, str]
    external: str | None
    phantom: bool
    licence: str = ""


Progress = Callable[[int, int], None]


def locate(source: str, *, image_size: int, progress: Progress | None = None) -> Federation:
    """Return the sites that ``source`` names.

    ``auto`` is the environment's ``POPMI_DATA``, else ``data/`` below the working directory if it holds images, else
    the phantom; what ``POPMI_DATA`` names must be usable, so that a study never runs on phantoms by mistake. A path
    may be a prepared data set (``dataset.json``), the raw dermoscopy archives (prepared once, into a cache), a folder
    of site folders or one site folder with ``labels.csv``, an ImageFolder, or a MedMNIST npz file.

    Args:
        source: ``auto``, ``phantom`` or a path.
        image_size: Pixels per side the run wants.
        progress: Called with (images done, images in all) while raw archives are prepared.

    Raises:
        DataError: If there is nothing usable there, or its images are smaller than the source would allow.
    """
    if source == "phantom":
        return _phantom()
    if source != "auto":
        return _open(Path(source).expanduser(), image_size, progress, said=f"data source {source}")
    named = os.environ.get("POPMI_DATA", "").strip()
    if named == "phantom":
        return _phantom()
    if named:
        return _open(Path(named).expanduser(), image_size, progress, said=f"POPMI_DATA={named}")
    beside = Path("data")
    if shape_of(beside) or nested_sets(beside):
        return _open(beside, image_size, progress, said="the folder data/")
    return _phantom()


def cache_folder() -> Path:
    """Return where prepared copies are kept: ``POPMI_CACHE``, else ``popmi`` in the user's cache folder."""
    named = os.environ.get("POPMI_CACHE", "").strip()
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache").absolute() / "popmi"


def _phantom() -> Federation:
    sites = {site: str(SiteSpec.phantom_of(site)) for site in sorted(PHANTOM_SITES)}
    return Federation("phantom", DERMOSCOPY_CLASSES, sites, None, True, "drawn by POPMI; shows no patient")


def _open(path: Path, image_size: int, progress: Progress | None, *, said: str) -> Federation:
    path = path.absolute()
    if not path.exists():
        raise DataError(f"{said} does not exist (looked at {path}). Name a folder of images, or use 'phantom'.")
    shape = shape_of(path)
    if shape is None:
        return _open_nested(path, image_size, progress, said)
    if shape == "raw":
        path = _prepare_once(path, image_size, progress)
    if shape in ("raw", "prepared"):
        return _from_card(path, read_card(path), image_size)
    found = _from_sites(path) if shape == "sites" else _from_single(path, shape)
    if len(found.classes) < 2:
        raise DataError(
            f"{said} has images of {len(found.classes)} class(es), expected at least 2: there is nothing to tell "
            "apart. Add the sites or folders that show the others."
        )
    return found


def _open_nested(path: Path, image_size: int, progress: Progress | None, said: str) -> Federation:
    nested = nested_sets(path)
    if len(nested) == 1:
        return _open(nested[0], image_size, progress, said=f"{said}/{nested[0].name}")
    if nested:
        names = ", ".join(child.name for child in nested)
        raise DataError(f"{said} holds several data sets: {names}. Name one of them, e.g. {nested[0]}.")
    raise DataError(
        f"{said} holds no data set: neither {FILE_NAME}, {INDEX}, labels.csv, site folders with a labels.csv, "
        "class folders of pictures, nor an npz file. See docs/data.md for these shapes."
    )


def _prepare_once(raw: Path, image_size: int, progress: Progress | None) -> Path:
    # The known checksums name the copy; the files themselves are checked when it is made.
    sources = "".join(f"{name}{digest}" for name, digest in sorted(SHA256.items()))
    key = hashlib.sha256(f"{RECIPE}{sources}".encode()).hexdigest()[:12]
    target = cache_folder() / f"dermoscopy-{image_size}-{key}"
    prepare_dermoscopy(raw, target, image_size=image_size, progress=progress, sha256=SHA256)
    return target


def _from_card(root: Path, card: DatasetCard, image_size: int) -> Federation:
    if card.image_size < min(image_size, card.source_image_size):
        raise DataError(
            f"{root} was prepared at {card.image_size} pixels, the run wants {image_size}. Prepare it again with "
            f"--image-size {image_size}, or set model.image_size to {card.image_size}."
        )
    sites = {site: str(SiteSpec(root / site)) for site in sorted(card.sites)}
    external = str(SiteSpec(root / card.external)) if card.external else None
    return Federation(card.name, card.classes, sites, external, False, card.licence)


def _from_sites(root: Path) -> Federation:
    folders = site_folders(root)
    classes = unite_classes(_readable_classes(folders))
    sites = {folder.name: str(SiteSpec(folder, classes=classes)) for folder in folders}
    return Federation(root.name, classes, sites, None, False)


def _readable_classes(folders: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield the classes of every site whose table can be read; the others will be refused when they join.

    Raises:
        DataError: The first site's, if no site's table can be read.
    """
    refusals: list[DataError] = []
    for folder in folders:
        try:
            yield classes_of_folder(folder)
        except DataError as error:
            refusals.append(error)
    if len(refusals) == len(folders) and refusals:
        raise refusals[0]


def _from_single(path: Path, shape: Shape) -> Federation:
    """Return a study of one file or folder; an npz file that names its sites is a study of these."""
    if shape == "npz":
        parts = list_parts(path)
        sites = {part: str(SiteSpec(path, part=part)) for part in parts} or {path.stem: str(SiteSpec(path))}
        known = find_set(path.stem)
        return Federation(path.stem, peek_classes(path), sites, None, False, known.licence if known else "")
    classes = list_classes(path) if shape == "imagefolder" else classes_above(path) or classes_of_folder(path)
    return Federation(path.name, classes, {path.name: str(SiteSpec(path, classes=classes))}, None, False)
