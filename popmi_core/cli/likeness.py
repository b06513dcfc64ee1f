"""What `popmi barrier` measures: two models of one architecture on one set of images, before and after matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from popmi_core.cli.aligning import WITH_IMAGES, Aligner, check_method
from popmi_core.cli.parents import Architecture, Parent, architecture_of, fitted, parse_arguments, read_parents
from popmi_core.cli.sites import part_of, read_sites, together
from popmi_core.data import ImageSet
from popmi_core.errors import UpdateError
from popmi_core.fusion import State, Update, fuse
from popmi_core.fusion.comparison import (
    Bounds,
    Line,
    Matrix,
    heads_alike,
    layers_alike,
    measure_bounds,
    measure_line,
)
from popmi_core.fusion.ensemble import ensemble
from popmi_core.fusion.path import evaluate, on_line
from popmi_core.matching import Matched, describe_model
from popmi_core.matching.moves import LayerMove, layer_moves
from popmi_core.matching.symmetry import Symmetry
from popmi_core.metrics.calibration import negative_log_likelihood
from popmi_core.metrics.linebound import LineBound

Tell = Callable[[str], None]
NAMES = ("A", "B")
MATCHED = "B, matched"
AVERAGE, ALIGNED, OPM, ENSEMBLE = "plain average", "aligned average", "OPM", "ensemble (two models)"


@dataclass(frozen=True)
class Inputs:
    """The two models, what they are, how to match them, the images to judge on by site, and those to look at."""

    parents: tuple[Parent, Parent]
    architecture: Architecture
    match: str
    seen: ImageSet | None
    parts: dict[str, ImageSet]
    split: str


@dataclass(frozen=True, eq=False)
class Likeness:
    """All figures. ``states`` are the models A and B, B matched to A, and what averaging makes of them."""

    inputs: Inputs
    states: dict[str, State]
    scores: dict[str, tuple[float, float]]
    moves: list[LayerMove]
    before: Line
    after: Line
    bounds: Bounds | None
    heads_before: dict[str, dict[str, Matrix]]
    heads_after: dict[str, dict[str, Matrix]]
    layers: dict[str, dict[str, float]]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return every figure as plain numbers, lists and names."""
        images = {site: len(part) for site, part in self.inputs.parts.items()}
        return {
            "models": [{"file": parent.file, "sha256": parent.sha256} for parent in self.inputs.parents],
            "architecture": self.inputs.architecture.name,
            "match": self.inputs.match,
            "split": self.inputs.split,
            "images": images,
            "before": _line(self.before),
            "after": _line(self.after),
            "scores": {name: {"loss": loss, "accuracy": hit} for name, (loss, hit) in self.scores.items()},
            "matching": [asdict(move) for move in self.moves],
            "note": self.note,
            "bound": None if self.bounds is None else _bounds(self.bounds),
            "heads": {"before": _lists(self.heads_before), "after": _lists(self.heads_after)},
            "cka": self.layers,
        }


def read(
    paths: tuple[Path, Path],
    *,
    model: str | None,
    model_arg: Sequence[str],
    adapter: str | None,
    image_size: int | None,
    lora_alpha: float | None,
    match: str,
    data: Sequence[str],
    split: str,
    images: int,
    tell: Tell,
) -> Inputs:
    """Read the models and the images.

    Raises:
        ConfigError, ModelError, DataError: If a model or the images cannot be used (see ``parents`` and ``sites``).
    """
    check_method(match, has_images=bool(data))
    arguments = parse_arguments(model_arg)
    parents = read_parents(paths)
    architecture = architecture_of(
        parents, name=model, arguments=arguments, adapter=adapter, image_size=image_size, lora_alpha=lora_alpha
    )
    first, second = (
        replace(p.held(), label=label) for p, label in zip(fitted(parents, architecture), NAMES, strict=True)
    )
    tell("reading the images")
    sites = read_sites(
        data, image_size=architecture.image_size, classes=architecture.classes, names=architecture.class_names
    )
    # Never the images that are judged on, unless somebody judges on the training split.
    learner = f"--match {match} looks at training images: give some with --data, or take --match weights."
    seen = together(part_of(sites, "train", remedy=learner)) if match in WITH_IMAGES else None
    parts = part_of(sites, split, remedy="Choose another with --split.", limit=images)
    return Inputs((first, second), architecture, match, seen, parts, split)


def measure(inputs: Inputs, *, points: int, tell: Tell) -> Likeness:
    """Match the second model to the first and measure everything.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If a model's loss is NaN or infinite.
    """
    (first, second), model = inputs.parents, inputs.architecture.model
    whole = together(inputs.parts)
    scores = {parent.label: _own_score(model, parent, whole) for parent in (first, second)}
    tell("matching")
    size = inputs.architecture.image_size
    symmetry = describe_model(model, image_size=size)
    aligner = Aligner(first.state, symmetry, model, method=inputs.match, image_size=size)
    matched = aligner.match(second.state, label=second.label, seen=inputs.seen)
    tell("walking the line before matching")
    before = measure_line(model, first.state, second.state, whole, points=points)
    tell("walking the line after matching")
    after = measure_line(model, first.state, matched.state, whole, points=points)
    states = _averages(first, second, matched, symmetry)
    scores |= {name: evaluate(model, states[name], whole) for name in (AVERAGE, ALIGNED, OPM)}
    scores[ENSEMBLE] = _ensemble(model, (first, second), whole)
    tell("comparing heads and layers")
    pairs = ((first.label, second.label), *((p.label, made) for made in (AVERAGE, OPM) for p in (first, second)))
    # Two files with the same weights have no line between them.
    bounds = measure_bounds(model, first.state, matched.state, after, whole) if after.distance > 0 else None
    return Likeness(
        inputs=inputs,
        states={**states, MATCHED: matched.state},
        scores=scores,
        moves=layer_moves(matched, aligner.symmetry),
        before=before,
        after=after,
        bounds=bounds,
        heads_before=heads_alike(model, first.state, second.state, symmetry),
        heads_after=heads_alike(model, first.state, matched.state, symmetry),
        layers=layers_alike(model, states, pairs, whole),
        note=matched.note,
    )


def _own_score(model: nn.Module, parent: Parent, data: ImageSet) -> tuple[float, float]:
    loss, hits = evaluate(model, parent.state, data)
    if not np.isfinite(loss):
        raise UpdateError(
            f"model {parent.label}, {parent.file}: its loss on these images is {loss}, expected a finite one. Its "
            "weights are finite, so its activations overflow: take another checkpoint of this model."
        )
    return loss, hits


def _averages(first: Parent, second: Parent, matched: Matched, symmetry: Symmetry) -> dict[str, State]:
    updates = [Update(first.label, first.state, 1), Update(second.label, matched.state, 1)]
    return {
        first.label: first.state,
        second.label: second.state,
        AVERAGE: on_line(first.state, second.state, 0.5),
        ALIGNED: on_line(first.state, matched.state, 0.5),
        OPM: fuse("adaptive_circuit", updates, reference=first.state, symmetry=symmetry).state,
    }


def _ensemble(model: nn.Module, parents: tuple[Parent, Parent], data: ImageSet) -> tuple[float, float]:
    answers = ensemble(model, [(1.0, parent.state) for parent in parents], data.images)
    hits = float((answers.argmax(axis=1) == data.targets).mean())
    return negative_log_likelihood(answers, data.targets), hits


def _line(line: Line) -> dict[str, Any]:
    return {
        "alpha": line.path.alphas.tolist(),
        "loss": list(line.path.losses),
        "accuracy": list(line.path.accuracies),
        "barrier": line.path.barrier,
        "accuracy_barrier": line.path.accuracy_barrier,
        "distance": line.distance,
    }


def _bounds(bounds: Bounds) -> dict[str, Any]:
    kinds = {"steepest_step": (bounds.slope_constant, bounds.slope)}
    kinds["largest_gradient"] = (bounds.gradient_constant, bounds.gradient)
    return {kind: {"lipschitz": constant, **_bound(bound)} for kind, (constant, bound) in kinds.items()}


def _bound(bound: LineBound) -> dict[str, Any]:
    forms = {"stated": bound.stated, "provable": bound.provable, "tight": bound.tight}
    table = {
        name: {"values": form.tolist(), "vacuous_points": bound.vacuous(form), "broken_points": bound.broken(form)}
        for name, form in forms.items()
    }
    return {"loss": bound.losses.tolist(), "trivial": bound.trivial, **table}


def _lists(table: Mapping[str, Mapping[str, Matrix]]) -> dict[str, dict[str, Any]]:
    return {
        layer: {name: np.round(matrix, 6).tolist() for name, matrix in products.items()}
        for layer, products in table.items()
    }
