"""The images that `popmi fuse` and `popmi barrier` judge models on: one site or several, of the models' classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from popmi_core.data import PHANTOM_SITES, ImageSet, SiteData, load_site, locate
from popmi_core.data.labelmap import onto_classes
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import ConfigError, DataError
from popmi_core.fusion import Score, Scorer, State
from popmi_core.fusion.path import evaluate

SPLITS = ("train", "val", "test", "external")
_SEED = 0
_PHANTOM_IMAGES = 600


def read_sites(
    specs: Sequence[str], *, image_size: int, classes: int | None, names: Sequence[str] | None = None
) -> dict[str, SiteData]:
    """Return the sites' images by name: of every spec, or of all sites in a folder of several.

    Args:
        specs: ``phantom``, ``phantom:<site>``, a MedMNIST npz file, a folder with labels.csv, class folders, or a
            folder of several sites.
        image_size: Pixels per side the models take.
        classes: Number of classes the models know; None where labels are not looked at.
        names: Their names in the order of the outputs, where the files tell them: targets are brought into it.

    Raises:
        DataError: If images cannot be read, have another number of classes than the models, or one that these do not
            know.
    """
    named: dict[str, str] = {}
    for spec in specs:
        for site, one in _sites_of(spec, image_size).items():
            numbered = (f"{site}-{number}" for number in itertools.count(len(named) + 1))
            named[next(label for label in itertools.chain([site], numbered) if label not in named)] = one
    sites = {site: _read(site, spec, image_size) for site, spec in named.items()}
    if classes is not None and names is not None:
        return {site: onto_classes(data, names) for site, data in sites.items()}
    for site, data in sites.items():
        if classes is not None and len(data.classes) != classes:
            raise DataError(
                f"site {site} has {len(data.classes)} classes ({', '.join(data.classes)}), the models know {classes}. "
                "Give images of the classes the models were trained on."
            )
    return sites


def _read(site: str, spec: str, image_size: int) -> SiteData:
    path = SiteSpec.parse(spec).path
    if path is not None and not path.exists():
        # The reader's own words leave the place out: at a hospital they may travel.
        raise DataError(
            f"site {site}: there are no images at {spec}. Name a folder with labels.csv and images/, class folders of "
            "pictures, or a MedMNIST npz file."
        )
    return load_site(site, spec, image_size=image_size, phantom_images=_PHANTOM_IMAGES, seed=_SEED)


def part_of(sites: Mapping[str, SiteData], split: str, *, remedy: str, limit: int | None = None) -> dict[str, ImageSet]:
    """Return the sites' images of one split; at most ``limit`` in all, drawn at random (seed 0), in even shares.

    ``remedy``: what a caller without such images should do.

    Raises:
        ConfigError: If there is no such split.
        DataError: If no site has an image in it.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    parts: dict[str, ImageSet] = {site: getattr(data, split) for site, data in sites.items()}
    parts = {site: part for site, part in parts.items() if len(part)}
    if not parts:
        raise DataError(f"no site has an image in the split {split}. {remedy}")
    if limit is None:
        return parts
    share = max(1, limit // len(parts))
    return {site: some_of(part, share) for site, part in parts.items()}


def some_of(images: ImageSet, count: int) -> ImageSet:
    """Return at most ``count`` of the images, drawn at random (seed 0), in their order."""
    if len(images) <= count:
        return images
    chosen = np.random.default_rng(_SEED).choice(len(images), count, replace=False)
    return images.subset(np.sort(chosen).astype(np.int64))


def together(parts: Mapping[str, ImageSet]) -> ImageSet:
    """Return the images of all sites in one set, site after site."""
    images = np.concatenate([part.images for part in parts.values()])
    return ImageSet(images, np.concatenate([part.targets for part in parts.values()]))


def scorer_on(model: nn.Module, parts: Mapping[str, ImageSet]) -> Scorer:
    """Return what scores a state at every site: loss (nats) and accuracy on these images."""

    def score(name: str, state: State) -> dict[str, Score]:
        del name
        found = {site: (len(part), *evaluate(model, state, part)) for site, part in parts.items()}
        return {site: Score(count, loss, accuracy) for site, (count, loss, accuracy) in found.items()}

    return score


def _sites_of(spec: str, image_size: int) -> dict[str, str]:
    if spec == "phantom":
        return {site: f"phantom:{site}" for site in PHANTOM_SITES}
    parsed = SiteSpec.parse(spec)
    if parsed.phantom is not None:
        return {parsed.phantom: spec}
    path = parsed.path or Path(spec)
    if shape_of(path) in ("prepared", "raw", "sites"):
        return dict(locate(spec, image_size=image_size).sites)
    return {path.stem if path.is_file() else path.name: spec}
