"""Whether a score summary that arrived can be believed: shapes, thresholds, counts that add up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import IntArray
from popmi_core.metrics.histograms import NUM_CELLS, Runs

if TYPE_CHECKING:
    from popmi_core.metrics.summary import ScoreSummary

# No evaluation set comes near it, and sums of squares of cells stay far inside int64.
_MOST_PATIENTS = 10**9
_NAMES = ("classes", "header", "runs")


def check_arrays(
    arrays: Mapping[str, NDArray[np.generic]], *, site: str, num_classes: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return header [7], classes [C, 5] and runs [r, 7] of a summary.

    Raises:
        UpdateError: If the names, a type or a shape is wrong, or a number is negative or too large.
    """
    if set(arrays) != set(_NAMES):
        raise UpdateError(
            f"site {site}: score summary has arrays {sorted(arrays)}, expected {list(_NAMES)}. "
            "Check that the site runs the same release."
        )
    checked = []
    for name, shape in (("header", (7,)), ("classes", (num_classes, 5)), ("runs", (None, 7))):
        values = np.asarray(arrays[name])
        fits = len(values.shape) == len(shape) and all(
            want in (None, got) for want, got in zip(shape, values.shape, strict=True)
        )
        if values.dtype != np.int64 or not fits:
            raise UpdateError(
                f"site {site}: score summary '{name}' is {values.dtype} {values.shape}, expected int64 {shape}. "
                "Check that the site runs the same release and label list."
            )
        if values.size and (values.min() < 0 or values.max() > _MOST_PATIENTS):
            raise UpdateError(
                f"site {site}: score summary '{name}' holds numbers outside 0..{_MOST_PATIENTS}, expected counts. "
                "The message is damaged; let the site send it again."
            )
        checked.append(values.astype(np.int64))
    kind, column = checked[2][:, 0], checked[2][:, 1]
    if ((kind > 3) | (column >= np.where(kind < 2, num_classes, 1))).any():
        raise UpdateError(
            f"site {site}: score summary has runs of an unknown kind or class, expected kinds 0..3 and classes "
            f"0..{num_classes - 1}. Check that the site runs the same release and label list."
        )
    return checked[0], checked[1], checked[2]


def check_summary(summary: ScoreSummary, *, site: str, min_cell: int) -> None:
    """Refuse a summary that tells of too few patients or contradicts itself.

    Raises:
        UpdateError: If either is the case; the message says where.
    """
    if summary.min_cell < min_cell:
        raise UpdateError(
            f"site {site}: score summary tells of groups of {summary.min_cell} patients, expected at least "
            f"{min_cell}. Set the site's smallest cell to the federation's."
        )
    wanted = [summary.num_examples if told else 0 for told in summary.told]
    totals = [p.total + n.total for p, n in zip(summary.positive, summary.negative, strict=True)]
    support = np.array([runs.total for runs in summary.positive], dtype=np.int64)
    others = np.array([runs.total for runs in summary.negative], dtype=np.int64)
    everyone = np.array([summary.num_examples])
    findings = {
        "runs that do not tile the grid or hold too few patients": not all(
            _well_formed(runs, summary.min_cell)
            for runs in (*summary.positive, *summary.negative, summary.wrong, summary.right)
        ),
        "classes whose positives and negatives do not add up to its images": totals != wanted
        or bool(((support == 0) | (others == 0))[summary.told].any()),
        "confidences that do not add up to its images": summary.wrong.total + summary.right.total
        != summary.num_examples,
        "hits out of range": not _within(summary.hits, support, summary.min_cell),
        "false alarms out of range": not _within(summary.false_alarms, others, summary.min_cell),
        "correct images out of range": not _within(np.array([summary.correct]), everyone, summary.min_cell),
    }
    for finding, found in findings.items():
        if found:
            raise UpdateError(
                f"site {site}: score summary has {finding}, expected counts that agree and small cells suppressed. "
                "Check that the site runs the same release."
            )


def _well_formed(runs: Runs, min_cell: int) -> bool:
    if not len(runs.count):
        return True
    tiled = runs.first[0] == 0 and runs.last[-1] == NUM_CELLS - 1
    tiled = tiled and bool((runs.first[1:] == runs.last[:-1] + 1).all() and (runs.first <= runs.last).all())
    centred = (runs.first <= runs.mean) & (runs.mean <= runs.last) & (2 * runs.spread <= runs.last - runs.first + 2)
    return tiled and bool((runs.count >= min_cell).all() and centred.all())


def _within(intervals: IntArray, groups: IntArray, min_cell: int) -> bool:
    """Whether 0 <= lower <= upper <= group, and only counts that may be told are told exactly."""
    low, high = intervals[:, 0], intervals[:, 1]
    told_exactly = (low == high) & (groups > 0)
    small = (low < min_cell) | (groups - high < min_cell)
    return bool((low <= high).all() and (high <= groups).all() and not (told_exactly & small).any())
