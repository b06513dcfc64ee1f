"""The study's page: one table a data set, medians over seeds with lowest and highest, and what was aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cases import COMMON, DATASETS, MEASURED, RECIPES, rows_of
from goals import goals
from overview import overview
from rows import ATTENTION, CONVOLUTIONS

Result = Mapping[str, Any]
# Column -> (path in a result, digits, factor).
COLUMNS: dict[str, tuple[tuple[str, ...], int, float]] = {
    "accuracy": (("accuracy",), 2, 100),
    "balanced": (("balanced_accuracy",), 2, 100),
    "AUROC": (("auroc",), 4, 1),
    "delta_rot": (("turning", "total_variation"), 4, 1),
    "over floor": (("turning", "over_floor", "total_variation"), 1, 1),
    "flips": (("turning", "flips"), 3, 1),
    "worst angle": (("turning", "worst_accuracy"), 1, 100),
    "worst AUROC": (("turning", "worst_auroc"), 4, 1),
    "LEE rotation": (("lee", "rotation"), 3, 1),
    "error C4": (("error", "C4"), -1, 1),
    "error D4": (("error", "D4"), -1, 1),
    "parameters": (("parameters",), 0, 1),
    "MFLOPs": (("flops",), 1, 1e-6),
    "x FLOPs": (("flops_of_plain",), 2, 1),
    "images/s": (("images_per_second",), 0, 1),
    "x time": (("times_plain",), 2, 1),
    "training, s": (("training", "seconds"), 0, 1),
    "seen, k": (("training", "seen"), 0, 1e-3),
}
TITLES = {
    "rotated_mnist": "Rotated MNIST (10,000 / 2,000 / 50,000 digits, 28 px)",
    "blood": "Blood cells (11,959 / 1,712 / 3,421 images, 28 px, 8 classes)",
    "dermoscopy": "Dermoscopy, five sites pooled, split by lesion (7,562 / 1,089 / 2,183 images, 64 px, 7 classes)",
}
INTRODUCTION = """# PREA and its rivals, trained alike

Printed by `python benchmarks/equivariance/study.py --out docs/results/equivariance` (one table: `--datasets blood`);
every run is in `equivariance.json`. Medians over seeds; in brackets the lowest and the highest.

**One rule for all rows of a table**: the same number of passes over the training images ({epochs}), batches of
{batch_size}, AdamW with weight decay {weight_decay}, warm-up over {warmup:.0%} of the steps and a cosine to zero, the
epoch chosen by validation accuracy (balanced on dermoscopy). The learning rate goes with the architecture: {rates}.
No augmentation but where the row says *rotations* (any angle, bilinear); distillation draws shifts and changes of
light. Backbones: {backbones}. Networks of rivals bring their own shape, and all but octic ones see dermoscopy at 32
px (so their rows say). Rows of *1,000 images* (250) learn from so many, drawn once, as all would take hours of a core
with the dense, attention and modern networks; beside these, the plain model, PREA and the p4 CNN on the same images
(*seen*: thousands of images in all, passes included), the epoch chosen on at most twice as many. GE-ViT p4m, slower
still, was trained on digits alone. *ResNet-8*: one block a stage behind a stem that keeps the resolution, learning
rate {resnet8:g}; it sees digits and blood cells at 28 px (29 with regular fields) and dermoscopy at 33. Rows of
*regular fields* and of ResNet-8 were added after a look at validation figures of one seed: 25 or 33 px, C4 or D4,
four learning rates, with and without rotations, a ResNet-20 as well; no test figure chose them. The digits' ResNet-8
was added once the p4 CNN's test figures were known. Left out to stay within hours: equitune on features (k = L is it,
with a bottleneck: PREA C4 of digits, and a row of blood cells), k = L on dermoscopy and under D4, D4 on digits, k = 0
at 33 px, on ResNet-8 and with lifted convolutions under D4, a ResNet-20 on blood cells, a ViT on digits, and the
post-hoc aggregations *sum* and *most probable*, which decide as *mean* does or nearly so, and the two learned ones
([posthoc.md](posthoc.md) has all seven). None of these had been run by this recipe when they were left out; GE-ViT
p4m on the other sets was once its figure on digits was known. A row on the *plain model* takes that model as it was
trained; *lambda-equitune* goes on from it, and *distilled* goes on from its teacher's weights (into regular fields:
of a quarter of them, by logits alone), without labels: all have their passes on top of those of the model they take.
Canonicalisation is as published where that does not suit these images: its prior is for upright ones.

Recipes were chosen by no test figure, but a goal names the best of several rows by their test figures, which flatters
the best a little, whoever it is.

Columns. *accuracy*, *balanced* (accuracy), *AUROC*: upright test images, all of them, or {fewer:,} ({fewest:,}) drawn
once where all would take longer than {patience} s (then marked *). *delta_rot*: mean total variation of the answer to
{turned} test images ({turned_slow} where a model reads fewer than {slow} images/s, then marked °) turned to 36 angles
(docs/metrics.md); *over floor*: as a multiple of what a rotation-invariant function of the same pixels shows;
*flips*: share of answers that change; *worst angle*: accuracy at the worst of the angles, on these images under a
soft disk (the training images' mean colour at their rim beyond it). *LEE rotation*: root mean square of the logits'
derivative per pixel of movement, over their spread, end to end, {lie} images. *error*: how far logits move under the
group, as a share of their spread (float32). *parameters*: free ones. *x FLOPs*, *x time*: inference against the plain
backbone (rows *on* another backbone: against that one, plain), every pass of a method counted, time in one interleaved
run of one thread, k = 0 as it trains: folded it takes the plain time ([overhead.md](overhead.md)); *training*:
processor seconds.
"""


def report(rows: Sequence[Result], seeds: int) -> str:
    """Return the whole page."""
    parts = [introduction(), status(rows, seeds), overview(rows)]
    for dataset in DATASETS:
        mine = [row for row in rows if row["dataset"] == dataset]
        parts.append(f"## {TITLES[dataset]}\n")
        parts.append(table(mine, dataset))
        parts.append(not_run(mine, dataset, seeds))
        parts.append("\n".join(f"- {line}" for line in goals(mine, dataset)) + "\n")
    return "\n".join(part for part in parts if part)


def introduction() -> str:
    """Return what the page says above its tables."""
    recipes = {name: RECIPES[name] for name in DATASETS}
    epochs = ", ".join(f"{name} {recipe['epochs']}" for name, recipe in recipes.items())
    backbones = ", ".join(f"{recipe['backbone']} ({name})" for name, recipe in recipes.items())
    rates = ", ".join(f"{recipe['backbone']} {recipe['learning_rate']:g}" for recipe in recipes.values())
    rates += f", group CNNs {CONVOLUTIONS:g}, attention networks {ATTENTION:g}"
    return INTRODUCTION.format(
        epochs=epochs, backbones=backbones, rates=rates, resnet8=CONVOLUTIONS, **COMMON, **MEASURED
    )


def status(rows: Sequence[Result], seeds: int) -> str:
    """Return how much of the study there is."""
    planned = sum(len(rows_of(dataset)) for dataset in DATASETS) * seeds
    if len(rows) == planned:
        return f"All {planned} runs are here.\n"
    return (
        f"**Not finished: {len(rows)} of {planned} runs are here.** Rows of one seed have no interval, and differences "
        "between them may be chance. The same command goes on.\n"
    )


def table(rows: Sequence[Result], dataset: str) -> str:
    """Return one markdown table, rows in the study's order."""
    if not rows:
        return "No run yet.\n"
    lines = ["| row | seeds | " + " | ".join(COLUMNS) + " |", "| --- | ---: |" + " ---: |" * len(COLUMNS)]
    most, turned = max(row["tested"] for row in rows), max(turned_images(row) for row in rows)
    for planned in rows_of(dataset):
        mine = [row for row in rows if row["row"] == planned.name]
        if mine:
            star = "*" if any(row["tested"] < most for row in mine) else ""
            star += "°" if any(turned_images(row) < turned for row in mine) else ""
            cells = [cell([value(row, path) for row in mine], digits, by) for path, digits, by in COLUMNS.values()]
            lines.append(f"| {planned.name}{star} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def turned_images(row: Result) -> int:
    """Return how many images were turned."""
    return int(row["turning"].get("images", 0))


def not_run(rows: Sequence[Result], dataset: str, seeds: int) -> str:
    """Return which rows lack seeds."""
    there = {planned.name: sum(row["row"] == planned.name for row in rows) for planned in rows_of(dataset)}
    none = [name for name, count in there.items() if not count]
    fewer = [f"{name} ({count})" for name, count in there.items() if 0 < count < seeds]
    told = [f"Not run yet: {'; '.join(none)}."] if none else []
    if fewer:
        told.append(f"Fewer than {seeds} seeds: {'; '.join(fewer)}.")
    return "\n".join(told) + "\n" if told else ""


def value(row: Result, path: Sequence[str]) -> float | None:
    """Return a figure by its path, None where it was not measured or is not defined."""
    found: Any = row
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def cell(values: Sequence[float | None], digits: int, factor: float) -> str:
    """Return the median, and lowest and highest where there are several; digits -1: powers of ten."""
    known = [factor * one for one in values if one is not None]
    if not known:
        return "-"
    low, middle, high = (number(one, digits) for one in (min(known), statistics.median(known), max(known)))
    return middle if len(known) == 1 or low == high else f"{middle} ({low} to {high})"


def number(one: float, digits: int) -> str:
    """Return a number as tables show it."""
    return f"{one:.0e}" if digits < 0 else f"{one:,.{digits}f}"
