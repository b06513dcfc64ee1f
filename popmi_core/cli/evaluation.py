"""What `popmi evaluate` measures: figures at every site, and what turning and moving the images does to the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from popmi_core.cli.opened import Opened
from popmi_core.cli.sites import part_of, read_sites, some_of, together
from popmi_core.data import ImageSet
from popmi_core.data.native import native_size
from popmi_core.equivariance.curve import Curve, rotation_curve
from popmi_core.equivariance.lie import Lee, lee_figures, lie_derivatives
from popmi_core.equivariance.lie_layers import LayerTerms, layer_terms
from popmi_core.equivariance.turning import border_colour, turn_images
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.metrics import classification_metrics
from popmi_core.metrics.resampling import RESAMPLES
from popmi_core.metrics.turning import TurningFigures, softmax, turning_figures
from popmi_core.models import normalise, predict

Tell = Callable[[str], None]
Bytes = npt.NDArray[np.uint8]

ALL = "all"
"""What the images of all sites together are called; a site of this name gets a number behind it."""
_LARGEST = 256
_TIMES = 4


@dataclass(frozen=True, eq=False)
class Parts:
    """The images of one split, site by site: as the model takes them, and at their native resolution.

    Attributes:
        classes: Names of the classes.
        sized: Images at the model's size by site.
        native: The same images at the highest resolution there is (the model's size where nothing is turned).
    """

    classes: tuple[str, ...]
    sized: dict[str, ImageSet]
    native: dict[str, ImageSet]


@dataclass(frozen=True)
class Sample:
    """One image that changes much when it is turned.

    Attributes:
        upright: As the model saw it at 0 degrees, ``uint8 [side, side, 3]``.
        turned: As it saw it at the angle, the same shape.
        degrees: The angle at which this image's answer differs most.
        target: The image's class.
        answers: Class and its probability, upright and turned.
        variation: Total variation between the two answers.
    """

    upright: Bytes
    turned: Bytes
    degrees: float
    target: str
    answers: tuple[tuple[str, float], tuple[str, float]]
    variation: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that was measured; what was not asked for is None or empty."""

    sites: dict[str, int]
    classes: tuple[str, ...]
    figures: dict[str, dict[str, float]]
    native: dict[str, int] = field(default_factory=dict)
    turning: TurningFigures | None = None
    turning_sites: dict[str, TurningFigures] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    lee: dict[str, Lee] = field(default_factory=dict)
    lee_images: int = 0
    layers: LayerTerms | None = None

    def to_json(self) -> dict[str, Any]:
        """Every figure by name; no image, and no name of a file."""
        found: dict[str, Any] = {"classes": list(self.classes), "images": self.sites, "figures": self.figures}
        if self.turning is not None:
            found["rotations"] = {
                "native_pixels": self.native,
                **self.turning.to_json(),
                "sites": {site: figures.to_json() for site, figures in self.turning_sites.items()},
            }
        if self.layers is not None:
            found["lee"] = {
                "images": self.lee_images,
                "end_to_end": {name: figures.to_json() for name, figures in self.lee.items()},
                "by_layer": {name: self.layers.lee(name) for name in self.lee},
                "by_kind": {name: self.layers.shares(name, by_kind=True) for name in self.lee},
                "classes_exact": self.layers.exact,
            }
        return found


def read_parts(
    specs: Sequence[str],
    *,
    image_size: int,
    classes: int,
    names: Sequence[str] | None = None,
    split: str,
    limit: int | None,
    native: bool,
) -> Parts:
    """Read the split's images at the model's size and, where ``native``, again at their own.

    ``names``: the classes in the order of the model's outputs, where its file tells them; targets are brought into it.
    ``limit``: at most so many images in all, but one of every site.

    Pictures of more than four times the model's size (or 256 pixels, if that is more) are read at that: turning finer
    ones changes nothing that is left after the reduction.

    Raises:
        ConfigError: If no data is named, or there is no such split.
        DataError: If images cannot be read, have other classes than the model, or the split is empty.
    """
    if not specs:
        raise ConfigError("no images are named. Give --data: an npz file, a folder, or phantom.")
    most = max(_TIMES * image_size, _LARGEST)
    told: tuple[str, ...] = ()
    sized: dict[str, ImageSet] = {}
    large: dict[str, ImageSet] = {}
    for number, spec in enumerate(specs, start=1):
        sites = read_sites([spec], image_size=image_size, classes=classes, names=names)
        told = told or next(iter(sites.values())).classes
        size = native_size(spec, drawn=2 * image_size, most=most) if native else image_size
        again = sites if size == image_size else read_sites([spec], image_size=size, classes=classes, names=names)
        if other := [site for site, data in sites.items() if data.classes != told]:
            raise DataError(
                f"site {other[0]} has other classes than {', '.join(told)}, or in another order. "
                "Evaluate data sets of different classes one by one."
            )
        share = None if limit is None else max(1, limit // len(specs))
        remedy = "Choose another --split, or other --data."
        few, fine = (part_of(data, split, remedy=remedy, limit=share) for data in (sites, again))
        for site, part in few.items():
            numbered = (f"{site}-{more}" for more in itertools.count(number))
            label = next(name for name in itertools.chain([site], numbered) if name != ALL and name not in sized)
            sized[label], large[label] = part, fine[site]
    return Parts(told, sized, large)


def evaluate_model(
    opened: Opened,
    parts: Parts,
    *,
    rotations: bool = False,
    lee: int = 0,
    samples: int = 0,
    resamples: int = RESAMPLES,
    tell: Tell = lambda text: None,
) -> Evaluation:
    """Measure the model on the images.

    Args:
        opened: The model.
        parts: The images.
        rotations: Turn them through the full circle.
        lee: Images for LEE; 0 leaves it out.
        samples: Images shown at their worst angle.
        resamples: Draws of the bootstrap.
        tell: Told what is going on.

    Raises:
        ModelError: If the model answers NaN or infinity, or LEE cannot be measured.
        UpdateError: If there are fewer than two images to turn.
    """
    model = opened.model
    scores = {}
    for site, part in parts.sized.items():
        tell(f"answers on {len(part)} images of {site}")
        scores[site] = _scores(model, part.images, opened.parent.file)
    figures = {site: classification_metrics(scores[site], part.targets) for site, part in parts.sized.items()}
    whole = together(parts.sized)
    if len(parts.sized) > 1:
        figures[ALL] = classification_metrics(np.concatenate(list(scores.values())), whole.targets)
    found: dict[str, Any] = {}
    if rotations:
        found |= _turn(opened, parts, samples=samples, resamples=resamples, tell=tell)
    if lee:
        some = some_of(whole, lee)
        images = normalise(torch.from_numpy(some.images), model)
        tell(f"LEE of {len(some)} images, end to end")
        ends = lee_figures(lie_derivatives(model, images), resamples=resamples)
        tell(f"LEE of {len(some)} images, by layer")
        found |= {"lee": ends, "lee_images": len(some), "layers": layer_terms(model, images)}
    sizes = {site: len(part) for site, part in parts.sized.items()}
    return Evaluation(sizes, parts.classes, figures, **found)


def _scores(model: nn.Module, images: Bytes, file: str) -> npt.NDArray[np.float64]:
    scores = predict(model, images)
    if not np.isfinite(scores).all():
        raise ModelError(f"{file} answers NaN or infinity. Its training has diverged; take another round's model.")
    return scores


def _turn(opened: Opened, parts: Parts, *, samples: int, resamples: int, tell: Tell) -> dict[str, Any]:
    """Return the figures of all images and of every site, and the images that change most."""
    size, curves = opened.architecture.image_size, {}
    for site, part in parts.native.items():

        def progress(share: float, site: str = site) -> None:
            tell(f"turning the images of {site}: {share:.0%}")

        curves[site] = rotation_curve(opened.model, part.images, image_size=size, progress=progress)
    curve = _joined(list(curves.values()))
    targets = np.concatenate([part.targets for part in parts.native.values()])
    several = {site: one for site, one in curves.items() if len(curves) > 1 and one.logits.shape[1] > 1}
    return {
        "native": {site: part.images.shape[1] for site, part in parts.native.items()},
        "turning": turning_figures(
            curve.logits, targets, angles=curve.angles, invariant=curve.rings, resamples=resamples
        ),
        "turning_sites": {
            site: turning_figures(one.logits, parts.native[site].targets, angles=one.angles, resamples=resamples)
            for site, one in several.items()
        },
        "samples": _samples(opened, parts, curve, targets, samples),
    }


def _joined(curves: Sequence[Curve]) -> Curve:
    logits = np.concatenate([curve.logits for curve in curves], axis=1)
    return Curve(curves[0].angles, logits, np.concatenate([curve.rings for curve in curves], axis=1))


def _samples(
    opened: Opened, parts: Parts, curve: Curve, targets: npt.NDArray[np.int64], count: int
) -> tuple[Sample, ...]:
    """Return the images whose answer changes most at some angle, the most changed first."""
    scores = softmax(curve.logits)
    variation = np.abs(scores - scores[0]).sum(axis=2) / 2
    worst = variation.argmax(axis=0)
    places = [(site, row) for site, part in parts.native.items() for row in range(len(part))]
    colours = {site: border_colour(part.images) for site, part in parts.native.items()}
    size, found = opened.architecture.image_size, []
    for image in np.argsort(-variation.max(axis=0), kind="stable")[:count]:
        site, row = places[image]
        pixels = torch.from_numpy(parts.native[site].images[row]).permute(2, 0, 1)[None].float() / 255
        angle = curve.angles[worst[image]]
        outside = torch.tensor(colours[site])
        views = [turn_images(pixels, by, image_size=size, outside=outside) for by in (0.0, angle)]
        pictures = [(255 * view[0].permute(1, 2, 0)).round().byte().numpy() for view in views]
        tables = [scores[0, image], scores[worst[image], image]]
        named = [(parts.classes[table.argmax()], float(table.max())) for table in tables]
        target = parts.classes[targets[image]]
        answers = (named[0], named[1])
        found.append(Sample(pictures[0], pictures[1], angle, target, answers, float(variation[worst[image], image])))
    return tuple(found)
