"""A site's images from whatever shape they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from popmi_core.data.card import classes_above
from popmi_core.data.imagefolder import read_imagefolder
from popmi_core.data.images import SiteData, SkippedRow
from popmi_core.data.labelmap import EXCLUDED, LabelMap, explain_unmapped, needs_no_map, read_label_map, renamed
from popmi_core.data.medmnist import read_medmnist
from popmi_core.data.phantom import make_phantom_site
from popmi_core.data.pool import Pool
from popmi_core.data.reader import read_folder
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError

Words = Mapping[str, str]


def load_site(
    site: str,
    spec: str,
    *,
    image_size: int,
    phantom_images: int,
    seed: int,
    classes: tuple[str, ...] | None = None,
    label_map: Words | Path | None = None,
    to_train: bool = False,
) -> SiteData:
    """Read (or draw) one site's images.

    Args:
        site: The site's name, for messages and records.
        spec: One of ``Federation.sites``: ``phantom:<site>``, a folder with ``labels.csv``, an ImageFolder or a
            MedMNIST npz file; ``#labels=FILE`` behind it names a label map.
        image_size: Pixels per side.
        phantom_images: Images a phantom site draws, all splits together.
        seed: Seed of the phantom; real data never depend on it.
        classes: The project's classes in their order, where neither ``spec`` nor a ``dataset.json`` says them. Those
            that a site does not have are fine.
        label_map: The site's words for them, where ``spec`` names no file.
        to_train: Refuse images of which all are external, as a site must that takes part in a run.

    Raises:
        DataError: If the images cannot be used; see the reader of that shape.
    """
    parsed = SiteSpec.parse(spec)
    if parsed.phantom is not None:
        return make_phantom_site(parsed.phantom, num_images=phantom_images, image_size=image_size, seed=seed)
    pool = load_pool(site, spec, image_size=image_size, classes=classes, label_map=label_map)
    return pool.to_site(site, image_size=image_size, to_train=to_train)


def load_pool(
    site: str,
    spec: str,
    *,
    image_size: int | None,
    classes: tuple[str, ...] | None = None,
    label_map: Words | Path | None = None,
    allow_identifying: bool = False,
) -> Pool:
    """Read one site's real images with everything known of them.

    Args:
        site: The site's name.
        spec: As for ``load_site``, but not the phantom; so are ``classes`` and ``label_map``.
        image_size: Pixels per side; None keeps an npz file's own and means 64 for anything else.
        allow_identifying: Read DICOM files that tell who the patient is, for a check of the site's own.

    Raises:
        DataError: If the images cannot be used; see the reader of that shape.
    """
    parsed = SiteSpec.parse(spec)
    path = parsed.path
    shape = None if path is None else shape_of(path)
    if path is None or shape not in ("site", "imagefolder", "npz"):
        raise DataError(
            # Not the place itself: a site's folders are named by people, and this text may travel to the server.
            f"site {site}: there are no images where its data are said to lie. Name a folder with labels.csv and "
            "images/, class folders of pictures, or a MedMNIST npz file."
        )
    classes = parsed.classes or (classes_above(path) if shape == "site" else None) or classes
    words = parsed.label_map or label_map
    if shape == "site":
        return read_folder(
            path,
            image_size=image_size or 64,
            classes=classes,
            label_map=words,
            site=site,
            allow_identifying=allow_identifying,
        )
    mapped = read_label_map(words, site=site) if isinstance(words, Path) else words or {}
    if shape == "npz":
        return _onto(read_medmnist(path, image_size=image_size, part=parsed.part, site=site), classes, mapped)
    return read_imagefolder(
        path,
        image_size=image_size or 64,
        classes=classes,
        words=mapped,
        site=site,
        allow_identifying=allow_identifying,
    )


def _onto(pool: Pool, classes: tuple[str, ...] | None, words: Words) -> Pool:
    """Return a pool whose targets index into the project's classes; a file's classes without names are places in them.

    Raises:
        DataError: If there are images of a class that has no place among ``classes``.
    """
    wanted = classes or renamed(pool.classes, words)
    if needs_no_map(pool.classes, wanted):
        return replace(pool, classes=wanted)
    labels = LabelMap(wanted, words, site=pool.name)
    words_of_all = {position: pool.classes[target] for position, target in enumerate(pool.targets, start=1)}
    if problem := explain_unmapped(words_of_all, labels, site=pool.name):
        raise DataError(problem)
    places = {place: labels.target(pool.classes[place]) for place in set(pool.targets)}
    kept = [position for position, target in enumerate(pool.targets) if places[target] is not None]
    dropped = [position for position, target in enumerate(pool.targets) if places[target] is None]
    return replace(
        pool.take(kept),
        classes=wanted,
        targets=[places[pool.targets[position]] or 0 for position in kept],
        skipped=tuple(SkippedRow(position + 1, EXCLUDED) for position in dropped),
    )
