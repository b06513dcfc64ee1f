"""The study in one table: what answers best, at what cost, on each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from goals import SCORE, medians

Result = Mapping[str, Any]
HEADS = {"rotated_mnist": "rotated digits", "blood": "blood cells", "dermoscopy": "dermoscopy (balanced)"}


def _named(name: str, **other: str) -> dict[str, str]:
    """Return the study's row by data set: ``name``, or another where it is called otherwise."""
    return {dataset: other.get(dataset, name) for dataset in HEADS}


# What the table says -> the study's row by data set.
LINES: dict[str, Mapping[str, str]] = {
    "plain backbone": _named("plain"),
    "plain, rotations in training": _named("plain + rotations"),
    "PREA C4": _named("PREA C4"),
    "PREA D4": _named("PREA D4"),
    "PREA C4, k = 0": _named("PREA C4, k = 0", rotated_mnist="PREA C4, k = 0, 25 px"),
    "PREA, k = 0, distilled (digits C4, else D4)": _named(
        "PREA D4, k = 0, distilled", rotated_mnist="PREA C4, k = 0, 25 px, distilled"
    ),
    "PREA C4, regular fields": _named("PREA C4, regular fields", rotated_mnist="PREA C4, regular fields, 25 px"),
    "the same, rotations, twice the epochs": {
        "rotated_mnist": "PREA C4, regular fields, 25 px + rotations, twice the epochs"
    },
    "equitune C4": _named("equitune C4, logits"),
    "lambda-equitune C4": _named("lambda-equitune C4"),
    "canonicalisation C4": _named("canonicalisation C4"),
    "test-time augmentation C4 of the plain model": _named("test-time augmentation C4, plain model"),
    "octic ViT": _named("octic ViT"),
    "p4 CNN": _named("p4 CNN", dermoscopy="p4 CNN, 32 px"),
    "p4 CNN, rotations, twice the epochs": {"rotated_mnist": "p4 CNN + rotations, twice the epochs"},
    "C8 steerable CNN": _named("C8 steerable CNN", dermoscopy="C8 steerable CNN, 32 px"),
    "plain ResNet-8": _named("plain ResNet-8"),
    "PREA C4 on ResNet-8": _named("PREA C4 on ResNet-8"),
    "PREA C4 on ResNet-8, regular fields": _named("PREA C4 on ResNet-8, regular fields"),
    "the same, distilled": _named("PREA C4 on ResNet-8, regular fields, distilled"),
}


def overview(rows: Sequence[Result]) -> str:
    """Return one line a method: accuracy in per cent (median over seeds) and operations against the plain backbone."""
    lines = [
        "## In one table\n",
        "Accuracy on upright test images, per cent, and operations as a multiple of the plain backbone's (rows on "
        "ResNet-8: of the plain ResNet-8's); medians, with ' of fewer than three seeds.\n",
        f"| | {' | '.join(HEADS.values())} |",
        "| --- |" + " ---: |" * len(HEADS),
    ]
    for said, names in LINES.items():
        cells = [_cell(rows, dataset, names.get(dataset, "")) for dataset in HEADS]
        if any(cells):
            lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Result], dataset: str, name: str) -> str:
    mine = [row for row in rows if (row["dataset"], row["row"]) == (dataset, name)]
    if not mine:
        return ""
    score = medians(mine, lambda row: row[SCORE[dataset]])[name]
    cost = medians(mine, lambda row: row["flops_of_plain"])[name]
    return f"{100 * score:.1f}{chr(39) if len(mine) < 3 else ''} at {cost:.2f} x"
