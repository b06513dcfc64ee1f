"""The study's page: every case, its distance to pooled training and to the best single site, and why it was tried."""

from __future__ import annotations

import statistics
from typing import Any

from attempts import ATTEMPTS, SETTING
from cases import GROUPS

POOLED, SINGLE, PLAIN = "pooled", "best single site", "fedavg 5 x 4"
COLUMNS = {
    "val_auroc": "val AUROC",
    "test_auroc": "test AUROC",
    "test_mean_site_auroc": "mean of sites",
    "test_worst_site_auroc": "worst site",
    "test_balanced_accuracy": "bal. accuracy",
    "external_auroc": "elsewhere",
}
Row = dict[str, Any]


def markdown(rows: list[Row]) -> str:
    """Return one table a group of cases: medians over seeds (lowest to highest), and the share of the gap closed.

    The gap is pooled minus plain average (5 local epochs, 4 rounds) in test AUROC, medians of the seeds there are.
    """
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        row["test_mean_site_auroc"] = statistics.mean(row["test_site_auroc"].values())
        by_case.setdefault(row["case"], []).append(row)
    lines = [SETTING]
    for title, cases in GROUPS.items():
        there = [name for name in cases if name in by_case]
        if not there:
            continue
        lines += [f"\n## {title}\n"]
        if title.startswith("Attempts"):
            lines += [ATTEMPTS, ""]
        lines += [
            "| case | seeds | " + " | ".join(COLUMNS.values()) + " | to pooled | to best single | gap closed |",
            "| --- | ---: |" + " ---: |" * (len(COLUMNS) + 3),
        ]
        lines += [_line(name, by_case) for name in there]
        if missing := [name for name in cases if name not in by_case]:
            lines += [f"\nNot run: {', '.join(missing)}."]
    same = _same(rows)
    if same:
        lines += ["\n## The same model bit for bit, seed 0\n", *same]
    return "\n".join(lines) + "\n"


def _line(name: str, by_case: dict[str, list[Row]]) -> str:
    mine = by_case[name]
    pooled, single, plain = (_median(by_case.get(case, []), "test_auroc") for case in (POOLED, SINGLE, PLAIN))
    own = _median(mine, "test_auroc")
    beside = [f"{own - other:+.3f}" if other is not None else "-" for other in (pooled, single)]
    known = pooled is not None and plain is not None and pooled != plain
    closed = f"{(own - plain) / (pooled - plain):.0%}" if known else "-"
    cells = [_cell([row[column] for row in mine]) for column in COLUMNS]
    return f"| {name} | {len(mine)} | {' | '.join([*cells, *beside, closed])} |"


def _same(rows: list[Row]) -> list[str]:
    by_model: dict[str, list[str]] = {}
    for row in rows:
        if row["seed"] == 0 and "sha256" in row:
            by_model.setdefault(row["sha256"], []).append(row["case"])
    return [f"- {', '.join(names)}" for names in by_model.values() if len(names) > 1]


def _median(rows: list[Row], column: str) -> Any:
    return statistics.median(row[column] for row in rows) if rows else None


def _cell(values: list[float]) -> str:
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"
