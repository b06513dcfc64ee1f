"""The page of the exactness table: promised rows with the worst error of each, then rows that promise nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BOUNDS = {"float32": 1e-4, "float64": 1e-10}
MOMENTS = {"start": "as made", "trained": "trained", "averaged": "five averaged", "fused": "OPM of two"}
INTRODUCTION = """# Exactness: the promise and the measurement

Printed by `python benchmarks/equivariance/exactness.py --out docs/results/exactness`, which fails if a promise is
broken. Small nets of every family, smooth random images. Error: the largest change of a logit under the group (C4:
quarter turns; D4: and mirror images), over the logits' standard deviation between images. *Trained*: after a few
steps; *five averaged*: five clients trained from there, averaged; *OPM of two*: a second model of another start,
trained and put into a random basis, then matched, averaged, and BatchNorm statistics measured anew (as
`popmi fuse --repair`; with the old ones all images look alike to the average, and float32 errors, which are shares of
what images differ by, were up to 5e-4 for EfficientNet). Exact means at most 1e-4 in float32 and 1e-10 in
float64. Whether a backbone is promised to be exact at its size and k is what `check_geometry` says without looking at
this table.
"""


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page."""
    promised = [row for row in rows if row["promised"]]
    others = [row for row in rows if not row["promised"]]
    parts = [INTRODUCTION, verdict(promised), table(promised)]
    if others:
        parts += ["## Not promised\n", table(others), reasons(others)]
    unfused = unmatched(promised)
    return "\n".join([*parts, *([unfused] if unfused else [])])


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many promises are kept, and the worst error of each number format."""
    said = []
    for dtype, bound in BOUNDS.items():
        errors = [max(known(row), default=float("inf")) for row in rows if row["dtype"] == dtype]
        kept = sum(error <= bound for error in errors)
        if errors:
            said.append(f"{dtype}: {kept} of {len(errors)} kept, worst {max(errors):.1e} (allowed {bound:.0e})")
    return f"**Promises**: {'; '.join(said)}.\n" if said else "No row promises exactness.\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a family, design and group: both number formats at every moment."""
    head = [f"{moment}, {dtype}" for dtype in BOUNDS for moment in MOMENTS.values()]
    lines = [f"| family | design | group | px | {' | '.join(head)} |"]
    lines.append("| --- | --- | --- | ---: |" + " ---: |" * len(head))
    for name in dict.fromkeys(key(row) for row in rows):
        found = {row["dtype"]: row for row in rows if key(row) == name}
        cells = [cell(found.get(dtype), moment) for dtype in BOUNDS for moment in MOMENTS]
        lines.append(f"| {' | '.join(str(part) for part in name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why rows promise nothing."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["dtype"] == "float64":
            notes.setdefault(row["note"], []).append(f"{row['family']} {row['design']} {row['group']}")
    return "\n".join(f"- {note or 'no reason given'}: {'; '.join(names)}" for note, names in notes.items()) + "\n"


def unmatched(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which rows OPM has no description of, and what it says."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["dtype"] == "float64" and row.get("why"):
            notes.setdefault(row["why"], []).append(f"{row['family']} {row['design']} {row['group']}")
    if not notes:
        return ""
    lines = [f"- {'; '.join(names)}: {why}" for why, names in notes.items()]
    return "Without OPM (its message):\n\n" + "\n".join(lines) + "\n"


def key(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """Return what a line of the table is about."""
    return row["family"], row["design"], row["group"], row["size"]


def known(row: Mapping[str, Any]) -> list[float]:
    """Return the errors that were measured."""
    return [error for error in row["errors"].values() if error is not None]


def cell(row: Mapping[str, Any] | None, moment: str) -> str:
    """Return one error; in bold where it breaks a promise."""
    error = None if row is None else row["errors"][moment]
    if row is None or error is None:
        return "-"
    told = f"{error:.0e}"
    return f"**{told}**" if row["promised"] and error > BOUNDS[row["dtype"]] else told
