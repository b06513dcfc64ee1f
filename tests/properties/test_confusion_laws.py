"""The promise of confusion tables: told cells rule out nothing of a small count, by enumeration and by an oracle.

What a reader knows without the told cells: the number of images and of hits, the images of every class that is told
of, and ranges of hits and false alarms, narrowed by what runs of scores say. Every small count must have the same
numbers below ``min_cell`` open with the told cells as without them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from popmi_core.metrics import ScoreSummary, summarise_scores
from popmi_core.metrics.confusions import confusion_to_tell, hide_cells
from popmi_core.metrics.discrimination import confusion
from popmi_core.metrics.histograms import NUM_CELLS, Runs
from popmi_core.metrics.hits import top_one_range
from popmi_core.metrics.suppression import classes_to_tell, hide_counts, interval


@dataclass
class Knowledge:
    """Linear facts about a table, flattened: ``low <= facts @ table <= high``."""

    facts: list[np.ndarray]
    low: list[float]
    high: list[float]

    def add(self, fact: np.ndarray, low: float, high: float) -> None:
        self.facts.append(fact.ravel().astype(float))
        self.low.append(low)
        self.high.append(high)


def mask(size: int, rows: object, columns: object, *, diagonal: int = 1) -> np.ndarray:
    cells = np.zeros((size, size))
    cells[rows, columns] = 1
    if not diagonal:
        np.fill_diagonal(cells, 0)
    return cells


def known_without(table: np.ndarray, summary: ScoreSummary) -> Knowledge:
    size, known = len(table), Knowledge([], [], [])
    known.add(np.ones((size, size)), table.sum(), table.sum())
    known.add(np.eye(size), np.trace(table), np.trace(table))
    for c in np.flatnonzero(summary.told):
        known.add(mask(size, c, slice(None)), table[c].sum(), table[c].sum())
        hits = top_one_range(summary.positive[c], summary.hits[c], size)
        known.add(mask(size, c, c), *hits)
        alarms = top_one_range(summary.negative[c], summary.false_alarms[c], size)
        known.add(mask(size, slice(None), c, diagonal=0), *alarms)
    return known


def with_cells(known: Knowledge, told) -> Knowledge:
    more = Knowledge(list(known.facts), list(known.low), list(known.high))
    for (row, column), cell in np.ndenumerate(np.array(told, dtype=object)):
        if cell is not None:
            more.add(mask(len(told), row, column), cell, cell)
    return more


def small_counts(table: np.ndarray, summary: ScoreSummary, told) -> list[np.ndarray]:
    """Return every count below the smallest cell that is not told: cells, misses, false alarms and so on."""
    size, few = len(table), summary.min_cell
    cells = [mask(size, r, c) for r, c in itertools.product(range(size), repeat=2) if told[r][c] is None]
    misses = [mask(size, c, slice(None), diagonal=0) for c in range(size)]
    alarms = [mask(size, slice(None), c, diagonal=0) for c in range(size)]
    classes = [mask(size, c, slice(None)) for c in np.flatnonzero(~summary.told)]
    # Right rejections: neither of the class nor called so.
    rejections = [1 - mask(size, c, slice(None)) - alarms[c] for c in np.flatnonzero(summary.told)]
    return [count for count in (*cells, *misses, *alarms, *classes, *rejections) if (count * table).sum() < few]


def vague(count: int) -> Runs:
    """One run over the whole grid of which nothing follows."""
    middle = NUM_CELLS // 2
    return Runs.from_table(
        np.array([[0, NUM_CELLS - 1, count, middle - 1, middle]] if count else np.zeros((0, 5)), int)
    )


def summary_of(table: np.ndarray, min_cell: int) -> ScoreSummary:
    """Return what a site with this table tells, with runs that say nothing beside their number."""
    support, hits, total = table.sum(axis=1), np.diag(table), int(table.sum())
    told = classes_to_tell(support, min_cell=min_cell)
    others = total - support
    return ScoreSummary(
        min_cell=min_cell,
        num_examples=total,
        correct=interval(int(hits.sum()), total, min_cell=min_cell),
        told=told,
        hits=hide_counts(hits, support, told, min_cell=min_cell),
        false_alarms=hide_counts(table.sum(axis=0) - hits, others, told, min_cell=min_cell),
        positive=tuple(vague(int(n)) for n in support),
        negative=tuple(vague(int(n)) for n in others),
        wrong=vague(0),
        right=vague(total),
    )


def every_table(size: int, total: int) -> np.ndarray:
    """Return all tables of so many patients, [tables, size * size]."""
    cuts = np.array(list(itertools.combinations(range(total + size**2 - 1), size**2 - 1)))
    edges = np.column_stack([np.full(len(cuts), -1), cuts, np.full(len(cuts), total + size**2 - 1)])
    return np.diff(edges, axis=1) - 1


def fitting(tables: np.ndarray, known: Knowledge) -> np.ndarray:
    sums = tables @ np.array(known.facts).T
    return tables[((sums >= np.array(known.low)) & (sums <= np.array(known.high))).all(axis=1)]


@pytest.mark.parametrize(("size", "total"), [(2, 8), (2, 13), (3, 7)])
def test_in_every_small_table_told_cells_rule_out_no_small_number(size, total):
    tables, few = every_table(size, total), 2
    rng = np.random.default_rng(0)
    chosen = tables if len(tables) <= 600 else tables[rng.choice(len(tables), 600, replace=False)]
    telling = 0
    for flat in chosen:
        table = flat.reshape(size, size)
        summary = summary_of(table, few)
        told = hide_cells(table, summary)
        telling += any(told[r][c] is not None for r in range(size) for c in range(size) if r != c)
        known = known_without(table, summary)
        before, after = fitting(tables, known), fitting(tables, with_cells(known, told))
        for count in small_counts(table, summary, told):
            ranges = [set((some @ count.ravel()).astype(int)) & set(range(few)) for some in (before, after)]
            assert ranges[0] == ranges[1], (table, told, count)
    # The promise would be cheap if nothing were ever told.
    assert telling > 0


def reach(known: Knowledge, count: np.ndarray, few: int) -> tuple[int, int]:
    """Return least and most of a count below ``few``, by integer programming."""
    size = count.size
    facts = LinearConstraint(np.array(known.facts), known.low, known.high)
    ends = []
    for sign in (1, -1):
        found = milp(sign * count.ravel(), constraints=facts, bounds=Bounds(0, np.inf), integrality=np.ones(size))
        assert found.success
        ends.append(round(sign * found.fun))
    return ends[0], min(ends[1], few - 1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from([2, 3, 5]), st.sampled_from([12, 40, 150]))
@settings(max_examples=25, deadline=None)
def test_an_oracle_finds_no_small_number_that_told_cells_rule_out(seed, size, few, images):
    rng = np.random.default_rng(seed)
    target = rng.choice(size, size=images, p=rng.dirichlet(np.ones(size)))
    odds = np.exp(rng.normal(size=(images, size)) + rng.choice([0.5, 2.0]) * np.eye(size)[target])
    scores = odds / odds.sum(axis=1, keepdims=True)
    summary = summarise_scores(scores, target, min_cell=few)
    table, told = confusion(scores.argmax(axis=1), target, size), confusion_to_tell(scores, target, summary)
    known = known_without(table, summary)
    for count in small_counts(table, summary, told):
        assert reach(known, count, few) == reach(with_cells(known, told), count, few), (table, told, count)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_told_cells_are_true_large_and_of_classes_that_are_told_of(seed, size, images):
    rng = np.random.default_rng(seed)
    odds = 0.05 + np.eye(size) * rng.choice([0.1, 1.0, 5.0])
    shares = rng.dirichlet(np.ones(size))
    table = np.stack(
        [rng.multinomial(n, r / r.sum()) for n, r in zip(rng.multinomial(images, shares), odds, strict=True)]
    )
    summary = summary_of(table, 5)
    told = hide_cells(table, summary)
    for (row, column), cell in np.ndenumerate(np.array(told, dtype=object)):
        assert cell is None or (cell == table[row, column] >= 5 and summary.told[row])
