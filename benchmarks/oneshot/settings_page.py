"""The page of rivals' settings: default and chosen beside each other, and what it means for the study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_LEVELS = ("weights", "unlabelled")


def page(rows: Sequence[Row], study: Sequence[Row], told: str) -> str:
    """Return the whole page; ``study`` holds the rows of oneshot.json, ``told`` the options that were given."""
    parts = [_INTRODUCTION.replace("OPTIONS", told)]
    for architecture, count in dict.fromkeys((row["architecture"], row["n"]) for row in rows):
        mine = [row for row in rows if (row["architecture"], row["n"]) == (architecture, count)]
        theirs = [
            row for row in study if (row["dataset"], row["architecture"], row["n"]) == ("blood", architecture, count)
        ]
        judged = {tuple(row["parents"]) for row in mine if row["split"] == "test"}
        parts.append(f"## {architecture}, N = {count}: chosen on one case, told on {len(judged)} others\n")
        parts.append(table(mine))
        parts.append("\n".join(verdicts(mine, theirs)) + "\n")
        parts.append(grid(mine))
    return "\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Return one line a rival: default and chosen setting on the cases that had no part in the choice."""
    lines = [
        "| rival | looks at | default | chosen on validation | accuracy, default | accuracy, chosen | gain by case "
        "| loss, default (nats) | loss, chosen (nats) |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rival in names(rows):
        tried, default, chosen = parts_of(rows, rival)
        cells = [rival, tried[0]["looks"], tried[0]["setting"]]
        if not chosen:
            lines.append("| " + " | ".join([*cells, _best(tried)["setting"], *["-"] * 5]) + " |")
            continue
        same = chosen[0]["setting"] == default[0]["setting"]
        cells += ["the default" if same else chosen[0]["setting"]]
        cells += [_cell([row["accuracy"] for row in part]) for part in (default, chosen)]
        cells += ["-" if same else _cell(gains(default, chosen), sign="+")]
        cells += [_cell([row["loss"] for row in part]) for part in (default, chosen)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts(rows: Sequence[Row], study: Sequence[Row]) -> list[str]:
    """Return which settings are clearly better, and the best rival beside OPM with what each may look at."""
    lines = []
    for rival in names(rows):
        _, default, chosen = parts_of(rows, rival)
        found = gains(default, chosen)
        if found and min(found) > 0:
            lines.append(
                f"- **{rival}: {chosen[0]['setting']} is better in every case** (median gain {_median(found):+.3f})."
            )
    lines = lines or ["- No chosen setting is better than the default in every case."]
    cases = {tuple(row["parents"]) for row in rows if row["split"] == "test"}
    for level, looks in enumerate(_LEVELS):
        allowed = _LEVELS[: level + 1]
        told = []
        for role in ("default", "chosen"):
            medians = {
                rival: _median([row["accuracy"] for row in rows if row["rival"] == rival and row.get("role") == role])
                for rival in names([row for row in rows if row.get("role") == role and row["looks"] in allowed])
            }
            if medians:
                best = max(medians, key=lambda rival: medians[rival])
                told.append(f"best rival at its {role} setting {best} {medians[best]:.3f}")
        ours = {
            name: [r["accuracy"] for r in study if r["method"] == name and tuple(r["parents"]) in cases]
            for name in dict.fromkeys(r["method"] for r in study if r["side"] == "opm" and r["looks"] in allowed)
        }
        ours = {name: values for name, values in ours.items() if values}
        if told and ours:
            best = max(ours, key=lambda name: _median(ours[name]))
            told.append(f"{best} {_median(ours[best]):.3f} (oneshot.json, parents of the same recipes)")
        if told:
            lines.append(f"- {looks}, median accuracy of the other cases: {'; '.join(told)}.")
    return [*lines, *agreement(rows, study)]


def agreement(rows: Sequence[Row], study: Sequence[Row]) -> list[str]:
    """Return how the defaults told here go with the study's rows of the same recipes.

    Training rounds differently on another kind of processor, so that parents of one recipe are only alike.
    """
    kept = {(row["method"], tuple(row["parents"])): row["accuracy"] for row in study}
    pairs = [
        (row["accuracy"], kept[row["rival"], tuple(row["parents"])])
        for row in rows
        if row.get("role") == "default" and (row["rival"], tuple(row["parents"])) in kept
    ]
    if not pairs:
        return []
    gaps = [abs(here - there) for here, there in pairs]
    return [
        f"- Defaults here beside the study's rows ({len(pairs)}): accuracy apart by {_median(gaps):.3f} (median), "
        f"{max(gaps):.3f} at most; 0 where the very same parents were fused."
    ]


def grid(rows: Sequence[Row]) -> str:
    """Return every setting that was tried, on the validation images it was chosen by."""
    parents = "+".join(next(row["parents"] for row in rows if row["split"] == "val"))
    lines = [f"Tried on the validation images of {parents}: accuracy (loss, nats).\n"]
    for rival in names(rows):
        said = [f"{row['setting']} {_told(row)}" for row in parts_of(rows, rival)[0]]
        lines.append(f"- {rival}: {'; '.join(said)}")
    return "\n".join(lines) + "\n"


def names(rows: Sequence[Row]) -> list[str]:
    """Return the rivals in their order."""
    return list(dict.fromkeys(row["rival"] for row in rows))


def parts_of(rows: Sequence[Row], rival: str) -> tuple[list[Row], list[Row], list[Row]]:
    """Return a rival's rows: every setting tried, the default on other cases, the chosen one on the same cases."""
    mine = [row for row in rows if row["rival"] == rival]
    roles = ([row for row in mine if row.get("role") == role] for role in (None, "default", "chosen"))
    tried, default, chosen = roles
    return tried, default, chosen


def gains(default: Sequence[Row], chosen: Sequence[Row]) -> list[float]:
    """Return by how much the chosen setting is more accurate, case by case."""
    return [after["accuracy"] - before["accuracy"] for before, after in zip(default, chosen, strict=True)]


def _best(tried: Sequence[Row]) -> Row:
    return max(tried, key=lambda row: row["accuracy"] or 0.0)


def _told(row: Row) -> str:
    return "refused" if row["accuracy"] is None else f"{row['accuracy']:.3f} ({row['loss']:.3f})"


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _cell(values: Sequence[float], sign: str = "") -> str:
    low, high = min(values), max(values)
    return f"{_median(values):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


_INTRODUCTION = """# Rivals at their best settings

Printed by `python benchmarks/oneshot/settings.pyOPTIONS --out docs/results/settings` (`POPMI_DATA`
set); every figure is in `settings.json`.

The [one-shot study](oneshot.md) runs rivals with this library's defaults. Here every rival has a small grid of its own
settings. One is chosen by accuracy on BloodMNIST's validation images, for pairs on the first pair of parents, for fours
on the first four. Default and choice are then fused from the *other* pairs and fours and told on test images: median
(lowest to highest), every parent counting the same, no training after the fusion. Nothing was chosen on test images.

*To the best parent*: the reference is the parent with the lowest validation loss instead of the first. *Starts*:
descents of Git Re-Basin's coordinate descent, for pairs; it sweeps until nothing moves, so that sweeps are no setting.
*Inner products*: section 3.1 of Git Re-Basin as printed, where the default compares correlations. *Shrink*: RegMean's
alpha. FedMA's other settings open new units, which a fixed width rules out. OT-Fusion by weights and by activations are
rows of their own. A choice is called better where it is so in every other case. Plain average, uniform soup and circuit
average have no setting.
"""
