"""Confusion tables as they may be told: what is hidden, what is not, and how sites' tables are added up."""

from __future__ import annotations

import numpy as np
import pytest

from popmi_core.errors import UpdateError
from popmi_core.metrics import summarise_scores
from popmi_core.metrics.confusions import MOST_CLASSES, confusion_to_tell, pool_confusions
from popmi_core.metrics.leeway import Leeway


def told(table):
    """Return the told table of images whose answers are a table's, each sure of itself."""
    counts = np.array(table)
    size = len(counts)
    target = np.repeat(np.arange(size), counts.sum(axis=1))
    preds = np.concatenate([np.repeat(np.arange(size), row) for row in counts])
    scores = np.full((len(target), size), 0.1 / (size - 1))
    scores[np.arange(len(target)), preds] = 0.9
    return confusion_to_tell(scores, target, summarise_scores(scores, target))


def test_a_table_without_small_cells_is_told_whole():
    assert told([[40, 9], [7, 30]]) == ((40, 9), (7, 30))


def test_a_small_cell_is_hidden_and_so_is_what_would_give_it_away():
    table = told([[40, 9, 3], [7, 30, 8], [6, 9, 35]])
    assert table[0] == (40, None, None)
    # In the other rows there is nothing small, and what flows between the hidden cells must not end in one told.
    assert None not in (table[0][0], table[1][1], table[2][2])
    assert sum(cell is None for row in table for cell in row) < 7


def test_zeros_are_as_small_as_ones():
    assert told([[40, 9, 0], [7, 30, 8], [6, 9, 35]]) == told([[40, 9, 1], [7, 30, 8], [6, 9, 35]])


def test_a_withheld_class_has_no_cell_but_others_may_be_told():
    table = told([[40, 9, 9], [9, 30, 8], [1, 1, 0]])
    assert table[2] == (None, None, None)
    assert table[0][0] == 40


def test_of_a_handful_of_images_nothing_is_told():
    assert told([[2, 0], [1, 1]]) == ((None, None), (None, None))


def test_of_very_many_classes_no_table_is_made():
    assert told(np.diag([6] * (MOST_CLASSES + 1))) == ()
    assert len(told(np.diag([6] * MOST_CLASSES))) == MOST_CLASSES


def test_hits_are_told_where_the_summary_tells_them():
    assert told([[9, 9], [9, 9]])[0][0] == 9
    # 3 of 12: the summary hides hits and misses.
    assert told([[3, 9], [9, 9]])[0][0] is None


def test_told_cells_of_all_sites_are_added_and_a_hidden_one_hides_the_sum():
    tables = [((40, 9), (7, None)), ((20, 6), (None, 10))]
    assert pool_confusions(tables, [(True, True), (True, True)]) == ((60, 15), (None, None))


def test_a_site_that_does_not_tell_of_a_class_hides_nothing_of_it():
    tables = [((40, 9), (7, 30)), ((20, 6), (None, None))]
    assert pool_confusions(tables, [(True, True), (True, False)]) == ((60, 15), (7, 30))
    assert pool_confusions(tables[1:], [(True, False)]) == ((20, 6), (None, None))


def test_where_a_site_sends_no_table_there_is_none_of_all():
    assert pool_confusions([((40, 9), (7, 30)), ()], [(True, True), (True, True)]) == ()
    assert pool_confusions([], []) == ()


@pytest.mark.parametrize(
    ("tables", "known"), [([((40, 9), (7, 30))], [(True,) * 3]), ([((40, 9), (7, 30))], []), ([], [(True, True)])]
)
def test_tables_of_other_sites_or_classes_are_refused(tables, known):
    with pytest.raises(UpdateError, match=r"confusion tables of \[.*\] classes, expected one for each of"):
        pool_confusions(tables, known)


def test_a_count_that_others_make_up_for_needs_nothing_hidden():
    # 2 -> 3 -> 0 -> ...: what 0 -> 2 gains, 0 -> 3 loses, and 1 makes up for it.
    leeway = Leeway(4)
    for edge, count in {(0, 2): 1, (0, 3): 9, (1, 2): 9, (1, 3): 9}.items():
        leeway.add(edge, count, 0, 28)
    leeway.tell((0, 1), 7, 28)
    leeway.open((0, 2), 4)
    leeway.open((0, 2), -1)
    assert leeway.told == {(0, 1)}


def test_a_count_that_a_told_one_holds_has_that_one_hidden_and_the_smallest_first():
    leeway = Leeway(4)
    leeway.add((0, 2), 1, 0, 28)
    leeway.add((1, 3), 9, 0, 28)
    leeway.add((1, 2), 9, 0, 28)
    leeway.tell((0, 3), 12, 28)
    leeway.open((0, 2), 3)
    assert leeway.told == frozenset()


def test_a_count_that_its_own_sums_hold_is_left_and_nothing_is_hidden_for_it():
    leeway = Leeway(4)
    leeway.add((0, 2), 1, 0, 28)
    leeway.tell((1, 3), 12, 28)
    leeway.open((0, 2), 3)
    assert leeway.told == {(1, 3)}
