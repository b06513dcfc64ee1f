"""The study's table: every case, its distance to pooled training and to the best single site."""

from __future__ import annotations

import statistics
from typing import Any

COLUMNS = {
    "val_auroc": "val AUROC",
    "test_auroc": "test AUROC",
    "test_balanced_accuracy": "test bal. accuracy",
    "test_worst_site_auroc": "worst site",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return one row a case: medians over its seeds (lowest to highest), and the share of the gap that it closes.

    The gap is pooled minus plain average (5 local epochs, 4 rounds) in test AUROC, medians.
    """
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    pooled, plain = (_median(by_case.get(name, []), "test_auroc") for name in ("pooled", "fedavg 5 x 4"))
    lines = [
        "| case | seeds | " + " | ".join(COLUMNS.values()) + " | to pooled | gap closed |",
        "| --- | ---: |" + " ---: |" * (len(COLUMNS) + 2),
    ]
    for name, mine in by_case.items():
        own = _median(mine, "test_auroc")
        known = pooled is not None and plain is not None and own is not None and pooled != plain
        distance = f"{own - pooled:+.3f}" if known else "-"
        closed = f"{(own - plain) / (pooled - plain):.0%}" if known else "-"
        cells = [_cell([row[column] for row in mine]) for column in COLUMNS]
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + f" | {distance} | {closed} |")
    return "\n".join(lines) + "\n"


def _median(rows: list[dict[str, Any]], column: str) -> Any:
    return statistics.median(row[column] for row in rows) if rows else None


def _cell(values: list[float]) -> str:
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"
