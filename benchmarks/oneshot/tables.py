"""The tables of the one-shot study: medians over all pairs or fours, lowest and highest behind them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
# The measure that decides who is ahead, chosen before the study ran: classes are even in one set, skewed in the other.
DECIDES = {"blood": "accuracy", "dermoscopy": "auroc"}
LOOKS = ("weights", "unlabelled", "labelled")
SAID = {
    "weights": "weights only",
    "unlabelled": "weights and unlabelled images",
    "labelled": "weights and labelled images",
}
# Said where a rival is ahead.
REASONS = {
    "dermoscopy": "AUROC is a mean over seven classes, the rarest with a handful of test images, and the two parents "
    "saw other class mixes: what tells them apart is mix more than basis, which no matching mends (RegMean, which sees "
    "the sites' inputs, gains more).",
    "popmi_resnet20_gn": "Groups of two channels leave few exact moves; soft transport mixes channels of different "
    "groups, which keeps neither parent's function but averages the noise away. No rule is useful here.",
    "popmi_mlp": "Without a stream to turn, both look for the same permutations, and the ranges over cases overlap.",
}
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "nll": "loss, nats",
    "of_best": "of best parent",
    "repaired": "BatchNorm re-estimated",
    "barrier_test": "barrier, test",
    "barrier_train": "barrier, train",
    "barrier_repaired": "barrier, test, re-estimated",
    "after_epoch": "after one epoch",
    "seconds": "seconds of one core",
}


def report(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION, overview(rows)]
    for dataset, architecture, count in dict.fromkeys((r["dataset"], r["architecture"], r["n"]) for r in rows):
        mine = complete(
            [r for r in rows if (r["dataset"], r["architecture"], r["n"]) == (dataset, architecture, count)]
        )
        if not any(row["side"] == "opm" for row in mine):
            continue
        cases = len({tuple(r["parents"]) for r in mine})
        parts.append(f"## {dataset}, {architecture}, N = {count} ({cases} case{'s' if cases > 1 else ''})\n")
        parts.append(table(mine, dataset))
        absent = [name for name in dict.fromkeys(r["method"] for r in rows) if name not in {r["method"] for r in mine}]
        if absent:
            parts.append(f"Not run here: {'; '.join(absent)}.\n")
        parts.append("\n".join(verdicts(mine, DECIDES[dataset])) + "\n")
    return "\n".join(parts)


def overview(rows: Sequence[Row]) -> str:
    """Return one line a study: OPM's barriers, and what four fused models reach of the best parent."""
    lines = [f"| {' | '.join(_OVERVIEW)} |", "| --- | --- |" + " ---: |" * (len(_OVERVIEW) - 2)]
    for dataset, architecture in dict.fromkeys((row["dataset"], row["architecture"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["architecture"]) == (dataset, architecture)]
        groups = [complete([row for row in mine if row["n"] == count] or mine) for count in (2, 4)]
        barrier = "barrier_repaired" if any("barrier_repaired" in row for row in mine) else "barrier_test"
        cells = [_cell([row.get(barrier) for row in groups[0] if row["method"] == name], barrier) for name in _BARRIERS]
        fours = [row for row in groups[1] if row["n"] == 4]
        best = _best([row for row in fours if row["looks"] != "labelled"], "opm", DECIDES[dataset], 1)
        shares = [_value(row, "of_best", dataset) for row in fours if best and row["method"] == best[0]]
        epochs = [
            row["after_epoch"][DECIDES[dataset]] / row["best_parent"]
            for row in fours
            if row["side"] == "opm" and "after_epoch" in row
        ]
        cells += [best[0] if best else "-", _cell(shares, "of_best"), _cell(epochs, "of_best")]
        lines.append(f"| {dataset} | {architecture} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def complete(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the cases that most methods were tried on: medians over different cases do not compare."""
    tried = {
        case: [row for row in rows if tuple(row["parents"]) == case] for case in {tuple(r["parents"]) for r in rows}
    }
    most = max(len(found) for found in tried.values())
    return [row for row in rows if len(tried[tuple(row["parents"])]) == most]


def table(rows: Sequence[Row], dataset: str) -> str:
    """Return one markdown table; columns nobody has a figure for are left out."""
    shown = [name for name in COLUMNS if any(_value(row, name, dataset) is not None for row in rows)]
    # Classes are even in the one set: there the other two say the same.
    shown = [name for name in shown if dataset != "blood" or name not in ("balanced_accuracy", "auroc")]
    lines = ["| method | looks at | " + " | ".join(COLUMNS[name] for name in shown) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(shown))
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [_cell([_value(row, name, dataset) for row in mine], name) for name in shown]
        looks = "-" if mine[0]["side"] == "reference" else mine[0]["looks"]
        lines.append(f"| {method} | {looks} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts(rows: Sequence[Row], measure: str) -> list[str]:
    """Return, for what methods may look at, whether the best OPM variant is ahead of the best rival."""
    lines = []
    for level, looks in enumerate(LOOKS):
        allowed = [row for row in rows if row["looks"] in LOOKS[: level + 1]]
        ours, theirs = (_best(allowed, side, measure, level) for side in ("opm", "rival"))
        if ours is None or theirs is None:
            continue
        wins, cases = _wins(rows, ours[0], theirs[0], measure, level)
        word = "ahead" if ours[1] > theirs[1] else "level" if ours[1] == theirs[1] else "**behind**"
        lines.append(
            f"- {SAID[looks]}: {ours[0]} {ours[1]:.3f}, best rival {theirs[0]} {theirs[1]:.3f} (median {measure}): "
            f"OPM {word}; better in {wins} of {cases} cases."
        )
        if ours[1] < theirs[1]:
            lines[-1] += _why(rows, theirs[0], level)
    return lines


def _why(rows: Sequence[Row], theirs: str, level: int) -> str:
    """Return what there is to say where a rival is ahead: the loss, and why this net or these sites are special."""
    losses = {
        method: statistics.median(_judged(row, "nll", level) for row in rows if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in rows if row["side"] == "opm" or row["method"] == theirs)
        if all(LOOKS.index(row["looks"]) <= level for row in rows if row["method"] == method)
    }
    rival = losses.pop(theirs)
    ours = min(losses, key=lambda method: losses[method])
    told = f" By loss: {ours} {losses[ours]:.3f}, {theirs} {rival:.3f} nats."
    return told + "".join(
        f" {why}" for place, why in REASONS.items() if place in (rows[0]["dataset"], rows[0]["architecture"])
    )


def _best(rows: Sequence[Row], side: str, measure: str, level: int) -> tuple[str, float] | None:
    medians = {
        method: statistics.median(_judged(row, measure, level) for row in rows if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in rows if row["side"] == side)
    }
    return max(medians.items(), key=lambda item: item[1]) if medians else None


def _wins(rows: Sequence[Row], ours: str, theirs: str, measure: str, level: int) -> tuple[int, int]:
    first, second = (
        {tuple(row["parents"]): _judged(row, measure, level) for row in rows if row["method"] == name}
        for name in (ours, theirs)
    )
    common = set(first) & set(second)
    return sum(first[case] > second[case] for case in common), len(common)


def _judged(row: Row, measure: str, level: int) -> float:
    # Where images may be looked at, every method's BatchNorm statistics are measured anew.
    return float((row.get("repaired", row) if level else row)[measure])


def _value(row: Row, name: str, dataset: str) -> float | None:
    if name == "of_best":
        return float(row.get("repaired", row)[DECIDES[dataset]] / row["best_parent"])
    found = row.get(name)
    found = found[DECIDES[dataset]] if isinstance(found, dict) else found
    return None if found is None else float(found)


def _cell(values: list[float | None], name: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 2 if name == "seconds" else 3
    low, middle, high = min(known), statistics.median(known), max(known)
    if len(known) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


_BARRIERS = ("OPM-Soup", "OPM-Soup, statistics", "OPM, maps learned without labels", "OPM, learned maps")
_OVERVIEW = (
    "parents",
    "architecture",
    *(f"N=2 barrier (test): {name}" for name in _BARRIERS),
    "N=4: best OPM without labels",
    "of best parent, no training",
    "maps learned without labels, then one epoch, of best parent",
)
_INTRODUCTION = """# One-shot fusion of independently trained models

Printed by `python benchmarks/oneshot/study.py --out docs/results/oneshot`; every result is in `oneshot.json`.

**Parents.** Small models from different random starts (28 px, AdamW, cosine). *blood*: BloodMNIST content, every parent
has seen the whole training split. *dermoscopy*: four real sites (vidir_molemax, vidir_modern, rosendahl, msk), each
parent has seen its own site's images only, whose classes are skewed differently. Budgets are small (half an hour of one
core for all parents), so dermoscopy parents are weak.

**Fusion.** One shot, no training; every parent counts the same. N = 2: matched to the first. N = 4: each to the mean of
those before it. *blood*: all six pairs of four seeds and all five fours of five. *dermoscopy*: all 24 pairs of sites
of one seed, and the four of each of four seeds. What a method may look at: *weights*; *unlabelled* training images of
each site (256 for activation statistics, 1,024 for RegMean's Gram matrices and for maps learned without labels, which
follow the two models' ensemble); *labelled* (up to 8,192 training images of the site for learned maps, the validation
split for soups).
*OPM* averages heads as products, those on whose products the models agree as weights (`adaptive_circuit`);
*OPM-Soup* and learned maps average weights. *probes* are smooth noise, no data.
FedMA is its one-shot part, at fixed width. Nets without a rotated stream (MLP, ResNets) are matched by OPM from three
further random orders of their layers, the closest end counting.

**Figures** are of the test images of the sites that take part: median (lowest to highest) over the cases. The barrier
is the highest rise of the loss above the chord of the two parents' losses at 25 points of the line on which the fused
model lies (512 test, 256 training images; nats); there is one where the rule is a linear average and the table has
the column. *After one epoch*: each site trains the fused model for one epoch on its own images (a third of the parents'
rate), then plain average; for *best single*, the best parent in place of the fused model. *Of best parent*: of the
deciding measure, accuracy for blood and AUROC for dermoscopy, where classes are skewed; a soup that keeps one parent is
as good as that parent and no fusion. Where there is one case there is no spread: such a table is a first look, and
what was not run is named below it. BatchNorm is re-estimated on 256 images a site. Seconds are of one busy core.
The rivals run with this library's defaults; variants of OT-Fusion and Git Re-Basin are rows of their own.
"""
