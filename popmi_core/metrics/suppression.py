"""Which counts of a site's confusion table may be told, and what is told instead of the others.

A count below ``min_cell``, zero included, is told as the interval 0..min_cell-1. That is not enough where sums are
known: the number of images and of hits stands in the round record, so one hidden count would follow by
subtraction. Counts are hidden until what they hide together holds at least ``min_cell`` patients on either side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from popmi_core.metrics.checks import IntArray


def classes_to_tell(support: IntArray, *, min_cell: int) -> NDArray[np.bool_]:
    """Which classes are told of, bool [C].

    Args:
        support: Images per class, shape [C].
        min_cell: Smallest number of patients that may be told of.
    """
    total = int(support.sum())
    told = (support >= min_cell) & (total - support >= min_cell)
    while not told.all() and told.any() and support[~told].sum() < min_cell:
        told[_smallest(support, told)] = False
    return told


def interval(count: int, group: int, *, min_cell: int) -> tuple[int, int]:
    """Return what may be told of ``count`` out of ``group``: itself, or an interval that holds it.

    Both the count and the rest of the group must reach ``min_cell`` to be told exactly.
    """
    if group < 2 * min_cell:
        return 0, group
    if count < min_cell:
        return 0, min_cell - 1
    if group - count < min_cell:
        return group - min_cell + 1, group
    return count, count


def hide_counts(counts: IntArray, groups: IntArray, told: NDArray[np.bool_], *, min_cell: int) -> IntArray:
    """Return an interval per class, int64 [C, 2], such that known sums do not give hidden counts away.

    Args:
        counts: Hits (or false alarms) per class, shape [C]; their sum is taken as known to all.
        groups: What each count is out of, shape [C].
        told: Classes told of; the others get 0..0, meaning nothing is said.
        min_cell: Smallest number of patients that may be told of.
    """
    pairs = zip(counts.tolist(), groups.tolist(), strict=True)
    intervals = np.array([interval(count, group, min_cell=min_cell) for count, group in pairs], dtype=np.int64)
    intervals[~told] = 0
    exact = told & (intervals[:, 0] == intervals[:, 1])
    while exact.any() and not _safe(counts, groups, intervals, told, exact, min_cell):
        chosen = _smallest(np.minimum(counts, groups - counts), exact)
        intervals[chosen] = (0, groups[chosen])
        exact[chosen] = False
    return intervals


def _safe(
    counts: IntArray,
    groups: IntArray,
    intervals: IntArray,
    told: NDArray[np.bool_],
    exact: NDArray[np.bool_],
    min_cell: int,
) -> bool:
    """Whether the sum of the hidden counts leaves each of them open."""
    hidden = ~exact
    if not hidden.any():
        return True
    rest, group = int(counts[hidden].sum()), int(groups[hidden].sum())
    if rest < min_cell or group - rest < min_cell:
        return False
    low = np.where(told, intervals[:, 0], 0)[hidden]
    high = np.where(told, intervals[:, 1], rest)[hidden]
    least = np.maximum(low, rest - (high.sum() - high))
    most = np.minimum(high, rest - (low.sum() - low))
    missed = groups[hidden] - most
    visible = told[hidden]
    given_away = ((least > 0) & (least < min_cell)) | (visible & (missed > 0) & (missed < min_cell)) | (least == most)
    return not given_away.any()


def _smallest(counts: IntArray, among: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(among)[np.argmin(counts[among])])
