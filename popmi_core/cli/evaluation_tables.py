"""An evaluation as tables on the screen, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from popmi_core.cli.evaluation import ALL, Evaluation
from popmi_core.equivariance.lie_layers import EXACT_CLASSES, LayerTerms
from popmi_core.metrics.resampling import Interval
from popmi_core.metrics.turning import TurningFigures

CLASSIFICATION = {
    "accuracy": "acc.",
    "balanced_accuracy": "bal.",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "macro_f1": "F1",
    "ece": "ECE",
    "brier": "Brier",
}
TURNING = {
    "total_variation": "total variation, mean",
    "total_variation_max": "total variation, largest",
    "logit_rms": "logits' move / spread",
    "flips": "flips",
    "flipped_ever": "flipped at any angle",
    "worst_accuracy": "accuracy, worst angle",
    "accuracy_drop": "accuracy lost there",
    "worst_auroc": "AUROC, worst angle",
    "worst_ece": "ECE, worst angle",
    "worst_brier": "Brier, worst angle",
}
# Of the twin, which only stands for interpolation, only what turning changes is of interest.
FLOORED = ("total_variation", "total_variation_max", "logit_rms", "flips", "flipped_ever", "accuracy_drop")
SHOWN_LAYERS = 8


def all_tables(found: Evaluation) -> Iterator[Table]:
    """Yield the tables of what was measured."""
    yield figures_table(found)
    if found.turning is not None:
        yield turning_table(found.turning)
    if found.layers is not None:
        yield lee_table(found)
        yield layers_table(found.layers)


def figures_table(found: Evaluation) -> Table:
    """Return a row per site."""
    table = _table("Figures, upright as stored", "site", "images", *CLASSIFICATION.values())
    total = sum(found.sites.values())
    for site, figures in found.figures.items():
        cells = [number(figures[name]) for name in CLASSIFICATION]
        table.add_row(site, str(found.sites.get(site, total)), *cells)
    return table


def turning_table(turning: TurningFigures) -> Table:
    """Return delta_rot's figures beside their floor."""
    table = _table("Turned by 0 to 350 degrees", "figure", "model", "95 %", "floor", "times floor")
    for name, words in TURNING.items():
        if name not in turning.figures:
            continue
        floor = turning.floor.figures[name] if turning.floor is not None and name in FLOORED else None
        times = turning.over_floor.get(name)
        value = turning.figures[name]
        below = "" if floor is None else number(floor.value)
        table.add_row(words, number(value.value), between(value), below, "" if times is None else ratio(times.value))
    return table


def lee_table(found: Evaluation) -> Table:
    """Return LEE by generator."""
    table = _table(
        f"LEE of {found.lee_images} images", "generator", "logits", "softmax", "softmax, |.|", "per pixel", "95 %"
    )
    for name, lee in found.lee.items():
        values = [number(value.value) for value in (lee.logits, lee.softmax, lee.softmax_abs, lee.relative)]
        table.add_row(name, *values, between(lee.relative))
    return table


def layers_table(layers: LayerTerms) -> Table:
    """Return the layers with the largest shares under rotation, with their shares under the other generators."""
    generators = list(dict.fromkeys(flow.generator for flow in layers.flows))
    first = "rotation" if "rotation" in generators else generators[0]
    shares = {name: layers.shares(name) for name in generators}
    table = _table("LEE by layer: share of all layers' sum", "layer", *generators)
    for layer in list(shares[first])[:SHOWN_LAYERS]:
        table.add_row(layer, *(f"{shares[name][layer]:.0%}" for name in generators))
    return table


def plain_words(found: Evaluation) -> list[str]:
    """Return what the figures say, in sentences."""
    said = []
    if (turning := found.turning) is not None:
        lost, angle = turning.figures["accuracy_drop"], turning.worst_angle
        accuracy = turning.by_angle["accuracy"][0]
        stored = found.figures.get(ALL, next(iter(found.figures.values())))["accuracy"]
        said.append(
            f"Upright, accuracy is {stored:.1%} on the images as stored and {accuracy:.1%} inside the disk, where all "
            "angles are compared."
        )
        said.append(
            f"Turning changes the class of {turning.figures['flipped_ever'].value:.0%} of the images at some angle; "
            f"at the worst, {angle:g} degrees, accuracy is {100 * lost.value:.1f} points lower than upright."
        )
        if (over := turning.over_floor.get("logit_rms")) is not None:
            said.append(f"Logits move {ratio(over.value)} times as much as an invariant function's on the same images.")
    if found.layers is not None and "rotation" in found.lee:
        kind, share = next(iter(found.layers.shares("rotation", by_kind=True).items()))
        said.append(f"Under a small rotation the largest part comes from layers of the kind '{kind}' ({share:.0%}).")
        if not found.layers.exact:
            said.append(
                f"More than {EXACT_CLASSES} classes: shares of layers are estimated by random combinations of classes."
            )
    return said


def number(value: float) -> str:
    """Return three digits after the point, more for small numbers, and a dash for what is undefined."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def between(value: Interval) -> str:
    """Return the interval."""
    return "–" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"


def ratio(value: float) -> str:
    """Return a multiple of the floor; over a floor of nothing it is infinite, and nothing over nothing is a dash."""
    return "∞" if value == math.inf else "–" if math.isnan(value) else f"{value:.3g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    return table
