"""A site's confusion table as it may be told, and the tables of all sites together.

A count below ``min_cell``, zero included, is hidden, and so are further ones. The promise: of every count below
``min_cell`` that is not told (a cell; hits, misses, false alarms and the rest of a class; a withheld class) the told
cells rule out nothing: whatever numbers below ``min_cell`` it could have by the site's score summary and the exact
number of hits, it can still have. So hidden cells cannot be reckoned from sums. No claim is made about several rounds
together, nor about single sites' exact figures beside accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import IntArray, check_scores
from popmi_core.metrics.discrimination import confusion
from popmi_core.metrics.hits import top_one_range
from popmi_core.metrics.leeway import Edge, Leeway
from popmi_core.metrics.summary import ScoreSummary

MOST_CLASSES = 30
"""Of more classes no table is told: nearly all of its cells would be hidden, at the price of a long search."""
Told = tuple[tuple[int | None, ...], ...]


def confusion_to_tell(scores: ArrayLike, target: ArrayLike, summary: ScoreSummary) -> Told:
    """Return images by (class, top-1 class) as they may be told beside their ``summary``; None where hidden.

    Rows of withheld classes are hidden whole, hits are told where the summary tells them. Empty with more than
    ``MOST_CLASSES`` classes.

    Args:
        scores: Probabilities, shape [n, C].
        target: Class numbers, shape [n].
        summary: ``summarise_scores`` of the same scores.

    Raises:
        UpdateError: If shapes, numbers or class numbers are wrong.
    """
    values, labels = check_scores(scores, target)
    return hide_cells(confusion(values.argmax(axis=1), labels, values.shape[1]), summary)


def hide_cells(table: IntArray, summary: ScoreSummary) -> Told:
    """Return a confusion table [C, C] as ``confusion_to_tell`` does."""
    size = len(table)
    if size > MOST_CLASSES:
        return ()
    if not summary.told.any():
        return ((None,) * size,) * size
    leeway = _leeway(table, summary)
    for edge, count, least, most in _small(table, summary):
        leeway.open(edge, least - count)
        leeway.open(edge, most - count)
    exact = summary.told & (summary.hits[:, 0] == summary.hits[:, 1])
    told = {(row, column - size) for row, column in leeway.told}
    told |= {(c, c) for c in np.flatnonzero(exact).tolist()}
    return tuple(tuple(int(table[r, c]) if (r, c) in told else None for c in range(size)) for r in range(size))


def _leeway(table: IntArray, summary: ScoreSummary) -> Leeway:
    """Return the counts and what is known of each; nodes: rows, columns, hits, withheld classes, all misses."""
    size, total = len(table), int(table.sum())
    leeway = Leeway(2 * size + 3)
    for (row, column), cell in np.ndenumerate(table):
        if row == column:
            continue
        if summary.told[row] and cell >= summary.min_cell:
            leeway.tell((row, size + column), int(cell), total)
        else:
            leeway.add((row, size + column), int(cell), 0, total)
    for edge, count, least, most in _sums(table, summary):
        leeway.add(edge, count, least, most)
    return leeway


def _sums(table: IntArray, summary: ScoreSummary) -> list[tuple[Edge, int, int, int]]:
    """Return hits, false alarms and withheld classes: where they flow, how many they are, least and most."""
    size, total = len(table), int(table.sum())
    hits, withheld, misses = 2 * size, 2 * size + 1, 2 * size + 2
    found: list[tuple[Edge, int, int, int]] = []
    for c in range(size):
        own, false = int(table[c, c]), int(table[:, c].sum() - table[c, c])
        known, alarms = (0, total), (0, total)
        if summary.told[c]:
            known = top_one_range(summary.positive[c], summary.hits[c], size)
            alarms = top_one_range(summary.negative[c], summary.false_alarms[c], size)
        else:
            found.append(((withheld, c), int(table[c].sum()), 0, total))
        found += [((c, hits), own, *known), ((size + c, misses), false, *alarms)]
    return found


def _small(table: IntArray, summary: ScoreSummary) -> list[tuple[Edge, int, int, int]]:
    """Return every count that is to stay open: where it flows, how many it is, least and most below ``min_cell``.

    Of hits and false alarms also the rest of their group, which is small where nearly all are.
    """
    size, few = len(table), summary.min_cell
    found = [
        ((row, size + column), int(count), 0, few - 1)
        for (row, column), count in np.ndenumerate(table)
        if row != column and count < few
    ]
    support = table.sum(axis=1)
    for edge, count, least, most in _sums(table, summary):
        if least == most:
            continue
        if count < few:
            found.append((edge, count, least, min(most, few - 1)))
        c = edge[0] % size
        group = int(support[c] if edge[0] < size else support.sum() - support[c])
        if edge[0] < 2 * size and summary.told[c] and group - count < few:
            found.append((edge, count, max(least, group - few + 1), min(most, group)))
    return found


def pool_confusions(tables: Sequence[Told], told: Sequence[Sequence[bool]]) -> Told:
    """Return the told cells of all sites added up; None where a site that tells of the class hides the cell.

    A row is about the images of the sites that tell of its class, as pooled figures are; of a class that no site tells
    of, all cells are None. Empty if a site sends no table.

    Args:
        tables: What sites told, of the same classes.
        told: Classes told of by each, as in ``ScoreSummary.told``.

    Raises:
        UpdateError: If tables and ``told`` are not of the same sites and classes.
    """
    sizes = {len(table) for table in tables if table} | {len(one) for one in told}
    if len(tables) != len(told) or len(sizes) > 1:
        raise UpdateError(
            f"{len(tables)} confusion tables of {sorted(sizes)} classes, expected one for each of {len(told)} sites, "
            "all of the same classes. Check that all sites use the federation's labels."
        )
    if not tables or not all(tables):
        return ()
    size = len(told[0])

    def cell(row: int, column: int) -> int | None:
        counts = [table[row][column] for table, known in zip(tables, told, strict=True) if known[row]]
        known_counts = [count for count in counts if count is not None]
        return sum(known_counts) if counts and len(known_counts) == len(counts) else None

    return tuple(tuple(cell(row, column) for column in range(size)) for row in range(size))
