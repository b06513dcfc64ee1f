"""The page of the post-hoc experiments: one table each, medians over seeds with lowest and highest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

INTRODUCTION = """# Aggregating a trained model's orbit

Printed by `python benchmarks/equivariance/posthoc.py --out docs/results/posthoc`; every run is in `posthoc.json`.
Accuracy in per cent (balanced accuracy in brackets for dermoscopy), medians over seeds, lowest to highest behind
them. *none*: the plain model as it was trained, aggregated; *head*: the head and what the aggregation adds are
trained on; *all*: everything is. Groups beyond four rotations interpolate (bicubic). A learned aggregation is not
told untrained, where it is the mean. Untrained, *most probable* decides as *mean* does, as log prod p_g and the mean of
the logits have the same largest class, and *sum* nearly so (the head's bias counts once): only their confidence
differs.

Digits: a ResNet-20 of `popmi_core.models` trained without augmentation; tested on 2,000 of the 50,000 rotated test
digits, drawn once; two passes over 1,000 of its training images afterwards. *Upright*: rotated MNIST's own digits
turned back by their known angle (bicubic), so they are interpolated twice. *A tenth*: 1,000 rotated digits, forty
passes. Lite0: weights of ImageNet, two passes over dermoscopy at 64 px, then two over 300 of its images; tested on
500.
"""
# Group, and what is trained afterwards.
SETTINGS = (("C4", "none"), ("C4", "head"), ("C4", "all"), ("C8", "none"))
DERMOSCOPY = "pretrained EfficientNet-Lite0"


def report(told: Mapping[str, Any]) -> str:
    """Return the whole page."""
    rows, planned = told["runs"], told["planned"]
    missing = "" if len(rows) == planned else (
        f"**Not finished: {len(rows)} of {planned} cells are here** (`-`: not run). The same command goes on.\n"
    )  # fmt: skip
    parts = [INTRODUCTION, *([missing] if missing else [])]
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        parts.append(table([row for row in rows if row["experiment"] == experiment], experiment))
    return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]], experiment: str) -> str:
    """Return one experiment's table: aggregations by group and by what is trained."""
    plain, longer = (
        [row for row in rows if row["aggregation"] == "plain" and row["trained"] == trained]
        for trained in ("none", "all")
    )
    groups = {row["group"] for row in rows}
    kinds = [(group, trained) for group, trained in SETTINGS if group in groups]
    told = f"The plain model: {cell(plain, experiment)}; trained on as *all* is: {cell(longer, experiment)}.\n"
    lines = [f"## {experiment[0].upper()}{experiment[1:]}\n", told]
    if not kinds:
        return "\n".join(lines)
    lines.append("| aggregation | " + " | ".join(f"{group}, {trained}" for group, trained in kinds) + " |")
    lines.append("| --- |" + " ---: |" * len(kinds))
    for name in dict.fromkeys(row["aggregation"] for row in rows if row["aggregation"] != "plain"):
        mine = [row for row in rows if row["aggregation"] == name]
        cells = [cell([row for row in mine if (row["group"], row["trained"]) == kind], experiment) for kind in kinds]
        lines.append(f"| {name.replace('-', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(rows: Sequence[Mapping[str, Any]], experiment: str) -> str:
    """Return the median accuracy, with lowest and highest of several seeds."""
    if not rows:
        return "-"
    found = [100 * row["accuracy"] for row in rows]
    said = f"{statistics.median(found):.1f}"
    if experiment == DERMOSCOPY:
        said += f" [{100 * statistics.median(row['balanced_accuracy'] for row in rows):.1f}]"
    return said if len(found) == 1 else f"{said} ({min(found):.1f} to {max(found):.1f})"
