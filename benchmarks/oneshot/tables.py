"""The tables of the one-shot study: medians over all pairs or fours, lowest and highest behind them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from introduction import introduction
from verdicts import DECIDES, SAID, Duel, Row, duel_after_epoch, duel_of, judged, verdicts

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "nll": "loss, nats",
    "of_best": "of best parent",
    "repaired": "BatchNorm re-estimated",
    "rise": "rise",
    "rise_repaired": "rise, re-estimated",
    "barrier_test": "barrier, test",
    "barrier_train": "barrier, train",
    "barrier_repaired": "barrier, test, re-estimated",
    "after_epoch": "after one epoch",
    "seconds": "seconds of one core",
}


# Whose rise half way and barrier the first table tells.
OVERVIEW = (
    "average", "OPM-Soup", "OPM-Soup, statistics", "OPM, maps learned without labels", "OPM, learned maps",
)  # fmt: skip


def report(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [introduction(), between(rows), of_the_best(rows), standings(rows)]
    for (dataset, architecture, count), mine in studies(rows).items():
        cases = len({tuple(r["parents"]) for r in mine})
        parts.append(f"## {dataset}, {architecture}, N = {count} ({cases} case{'s' if cases > 1 else ''})\n")
        parts.append(table(mine, dataset))
        absent = [name for name in dict.fromkeys(r["method"] for r in rows) if name not in {r["method"] for r in mine}]
        if absent:
            parts.append(f"Not run here: {'; '.join(absent)}.\n")
        parts.append("\n".join(verdicts(mine, DECIDES[dataset])) + "\n")
    return "\n".join(parts)


def studies(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[Row]]:
    """Return the rows by dataset, architecture and number of parents, where OPM was run."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["architecture"], row["n"]), []).append(row)
    whole = {name: complete(mine) for name, mine in found.items()}
    return {name: mine for name, mine in whole.items() if any(row["side"] == "opm" for row in mine)}


def between(rows: Sequence[Row]) -> str:
    """Return what lies half way between two models: the median rise and, in brackets, the median barrier."""
    lines = [
        "Half way between two: rise on the whole test split (barrier, 512 test images); nats, medians, BatchNorm "
        "re-estimated.\n",
        f"| parents | architecture | {' | '.join(OVERVIEW)} |",
        "| --- | --- |" + " ---: |" * len(OVERVIEW),
    ]
    for (dataset, architecture, count), mine in studies(rows).items():
        if count != 2:
            continue
        cells = [_rise_and_barrier([row for row in mine if row["method"] == name], dataset) for name in OVERVIEW]
        lines.append(f"| {dataset} | {architecture} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def of_the_best(rows: Sequence[Row]) -> str:
    """Return what four fused models reach of the best parent, by what may be looked at, and after an epoch."""
    lines = [
        "Four fused models as a share of the best parent's figure: the best OPM variant and the best rival (named) by "
        "weights, by weights and unlabelled images, and after one epoch. BatchNorm statistics are measured anew where "
        "images may be looked at, so not by weights alone.\n",
        "| parents | architecture | OPM, weights | rival, weights | OPM, unlabelled | rival, unlabelled "
        "| OPM, after one epoch | rival, after one epoch |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    for (dataset, architecture, count), mine in studies(rows).items():
        if count != 4:
            continue
        cells = [
            _share(mine, dataset, method, level)
            for level, duel in enumerate(_duels(mine, dataset))
            for method in ((duel.ours, duel.theirs) if duel else ("", ""))
        ]
        lines.append(f"| {dataset} | {architecture} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def standings(rows: Sequence[Row]) -> str:
    """Return who is ahead in every study, with the cases in which OPM is better."""
    lines = [
        "Is OPM ahead, by medians and case by case (in brackets: cases in which it is better)?\n",
        f"| parents | architecture | N | {SAID['weights']} | {SAID['unlabelled']} | after one epoch |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for (dataset, architecture, count), mine in studies(rows).items():
        cells = [f"{d.word} ({d.wins} of {len(d.more)})" if d else "-" for d in _duels(mine, dataset)]
        lines.append(f"| {dataset} | {architecture} | {count} | {' | '.join(cells)} |")
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


def _value(row: Row, name: str, dataset: str) -> float | None:
    if name == "of_best":
        return judged(row, DECIDES[dataset], 1) / float(row["best_parent"])
    if name in ("rise", "rise_repaired"):
        return rise(row, repaired=name == "rise_repaired")
    found = row.get(name)
    found = found[DECIDES[dataset]] if isinstance(found, dict) else found
    return None if found is None else float(found)


def rise(row: Row, *, repaired: bool = False) -> float | None:
    """Return the fused model's loss above the mean of its parents' (nats); None if it was not re-estimated."""
    measured = row.get("repaired") if repaired else row
    return None if measured is None else float(measured["nll"]) - statistics.mean(row["parents_nll"])


def _duels(rows: Sequence[Row], dataset: str) -> tuple[Duel | None, Duel | None, Duel | None]:
    measure = DECIDES[dataset]
    return duel_of(rows, measure, 0), duel_of(rows, measure, 1), duel_after_epoch(rows, measure)


def _share(rows: Sequence[Row], dataset: str, method: str, column: int) -> str:
    """Return the median share of the best parent; columns: weights, unlabelled, after one epoch."""
    measure = DECIDES[dataset]
    values = [
        (row["after_epoch"][measure] if column == 2 else judged(row, measure, column)) / row["best_parent"]
        for row in rows
        if row["method"] == method
    ]
    return f"{statistics.median(values):.3f} ({method})" if values else "-"


def _rise_and_barrier(rows: Sequence[Row], dataset: str) -> str:
    again = any("repaired" in row for row in rows)
    columns = ("rise_repaired", "barrier_repaired") if again else ("rise", "barrier_test")
    known = [[v for row in rows if (v := _value(row, name, dataset)) is not None] for name in columns]
    return "{:.3f} ({:.3f})".format(*map(statistics.median, known)) if all(known) else "-"


def _cell(values: list[float | None], name: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 2 if name == "seconds" else 3
    low, middle, high = min(known), statistics.median(known), max(known)
    if len(known) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
