"""What a site tells, what it keeps back, what the server refuses, and how close the pooled figures come."""

from __future__ import annotations

import numpy as np
import pytest

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.metrics import ScoreSummary, classification_metrics, pool_summaries, summarise_scores
from popmi_core.metrics.histograms import NUM_CELLS, count_cells, grid_edges, merge_small_cells
from popmi_core.metrics.suppression import classes_to_tell, hide_counts, interval


def make_site(num_images: int, *, seed: int, skew=(0.5, 0.3, 0.2)):
    rng = np.random.default_rng(seed)
    target = rng.choice(len(skew), size=num_images, p=skew)
    odds = np.exp(rng.normal(size=(num_images, len(skew))) + 1.5 * np.eye(len(skew))[target])
    return odds / odds.sum(axis=1, keepdims=True), target


def sent(seed: int = 0) -> dict[str, np.ndarray]:
    return summarise_scores(*make_site(200, seed=seed)).to_arrays()


def receive(arrays, *, min_cell: int = 5) -> ScoreSummary:
    return ScoreSummary.from_arrays(arrays, site="rosendahl", num_classes=3, min_cell=min_cell)


def test_the_grid_covers_zero_to_one_and_is_symmetric():
    edges = grid_edges()
    assert len(edges) == NUM_CELLS + 1
    assert (np.diff(edges) > 0).all()
    # One rounding of the logistic function.
    np.testing.assert_allclose(edges + edges[::-1], 1, atol=1e-15)


def test_scores_of_zero_and_one_fall_into_the_outer_cells():
    counts = count_cells(np.array([0.0, 1.0, 1.0]))
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)


def test_a_cell_with_too_few_patients_joins_its_neighbours():
    runs = merge_small_cells(np.array([9, 1, 0, 0, 0, 0, 2, 8]), min_cell=5)
    assert runs.table()[:, :3].tolist() == [[0, 3, 10], [4, 7, 10]]


def test_a_lone_straggler_does_not_move_a_cut():
    # Filling runs from the left would cut after cell 5 and so tell that somebody is there.
    assert merge_small_cells(np.array([4, 0, 0, 0, 0, 1, 0, 6]), min_cell=5).first.tolist() == [0]


def test_fewer_patients_than_the_smallest_cell_leave_no_run():
    assert merge_small_cells(np.array([1, 1, 1, 1]), min_cell=5).total == 0


def test_a_site_with_fewer_patients_than_the_smallest_cell_tells_nothing():
    summary = summarise_scores(*make_site(4, seed=0))
    assert summary.num_examples == 0
    assert summary.withheld == (0, 1, 2)
    assert len(summary.to_arrays()["runs"]) == 0


def test_a_rare_class_takes_the_next_smallest_with_it_so_that_subtraction_reveals_neither():
    # Told alone, 100 - 90 - 7 would give the three away.
    assert classes_to_tell(np.array([90, 7, 3]), min_cell=5).tolist() == [True, False, False]
    assert classes_to_tell(np.array([80, 10, 7, 3]), min_cell=5).tolist() == [True, True, False, False]


def test_two_rare_classes_hide_each_other():
    assert classes_to_tell(np.array([80, 14, 3, 3]), min_cell=5).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("count", "group", "told"),
    [(20, 50, (20, 20)), (3, 50, (0, 4)), (0, 50, (0, 4)), (48, 50, (46, 50)), (50, 50, (46, 50)), (4, 9, (0, 9))],
)
def test_small_counts_are_told_as_intervals(count, group, told):
    assert interval(count, group, min_cell=5) == told


def test_one_small_count_hides_a_second_so_that_the_known_sum_does_not_reveal_it():
    told = np.array([True, True, True])
    intervals = hide_counts(np.array([60, 20, 2]), np.array([100, 40, 30]), told, min_cell=5)
    assert intervals.tolist() == [[60, 60], [0, 40], [0, 4]]


def test_counts_that_are_all_large_are_told_exactly():
    told = np.array([True, True])
    intervals = hide_counts(np.array([60, 20]), np.array([100, 40]), told, min_cell=5)
    assert intervals.tolist() == [[60, 60], [20, 20]]


def test_a_smallest_cell_of_one_is_refused():
    with pytest.raises(ConfigError, match="min_cell is 1, expected at least 2"):
        summarise_scores(*make_site(20, seed=0), min_cell=1)


def test_pooled_figures_of_realistic_sites_are_close_to_the_exact_ones():
    sites = [make_site(size, seed=size) for size in (80, 150, 300, 500, 800)]
    summaries = [summarise_scores(*site) for site in sites]
    assert all(summary.told.all() for summary in summaries)
    pooled = pool_summaries(summaries)
    exact = classification_metrics(*(np.concatenate(parts) for parts in zip(*sites, strict=True)))
    # The goal for 5 sites of 80 to 800 patients; benchmarks/pooling_resolution.py has harder cases.
    for name in ("auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece"):
        assert getattr(pooled, name).value == pytest.approx(exact[name], abs=0.01)
    assert pooled.num_examples == 1830
    assert pooled.auroc.resolution < 0.02


def test_nothing_told_means_nothing_known():
    pooled = pool_summaries([summarise_scores(*make_site(3, seed=seed)) for seed in range(2)])
    assert (pooled.num_examples, pooled.classes) == (0, ())
    assert np.isnan(pooled.auroc.value)
    assert (pooled.accuracy.lower, pooled.accuracy.upper) == (0, 1)


def test_sites_without_errors_still_count_in_the_calibration():
    target = np.arange(40) % 2
    summary = summarise_scores(np.eye(2)[target] * 0.8 + 0.1, target)
    ece = pool_summaries([summary]).ece
    assert ece.lower <= 0.1 <= ece.upper


def test_the_record_gets_every_figure_with_its_bounds():
    figures = pool_summaries([receive(sent())]).as_dict()
    assert len(figures) == 18
    assert figures["auroc_lower"] <= figures["auroc"] <= figures["auroc_upper"]


def test_only_whole_numbers_travel():
    assert {values.dtype for values in sent().values()} == {np.dtype(np.int64)}


def test_no_summary_at_all_is_refused():
    with pytest.raises(UpdateError, match="0 score summaries have class counts"):
        pool_summaries([])


def test_sites_with_different_classes_are_refused():
    two = summarise_scores(*make_site(50, seed=0, skew=(0.5, 0.5)))
    with pytest.raises(UpdateError, match=r"class counts \[2, 3\]"):
        pool_summaries([two, receive(sent())])


def test_a_missing_array_is_refused():
    arrays = sent()
    del arrays["runs"]
    with pytest.raises(UpdateError, match="site rosendahl: score summary has arrays"):
        receive(arrays)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("header", np.zeros(6, dtype=np.int64)),
        ("classes", np.zeros((4, 5), dtype=np.int64)),
        ("runs", np.zeros((3, 7))),
        ("runs", np.full((3, 7), np.nan)),
    ],
)
def test_an_array_of_a_wrong_shape_or_type_is_refused(name, values):
    with pytest.raises(UpdateError, match=f"'{name}' is .*, expected int64"):
        receive({**sent(), name: values})


@pytest.mark.parametrize("number", [-1, 2**62])
def test_numbers_that_are_no_counts_are_refused(number):
    arrays = sent()
    arrays["header"][4] = number
    with pytest.raises(UpdateError, match="'header' holds numbers outside 0"):
        receive(arrays)


@pytest.mark.parametrize(("column", "value"), [(0, 4), (1, 3)])
def test_runs_of_an_unknown_kind_or_class_are_refused(column, value):
    arrays = sent()
    arrays["runs"][0, column] = value
    with pytest.raises(UpdateError, match="runs of an unknown kind or class"):
        receive(arrays)


def test_another_layout_is_refused():
    arrays = sent()
    arrays["header"][0] = 9
    with pytest.raises(UpdateError, match=r"layout, cells, classes \[9, 512, 3\], expected \[1, 512, 3\]"):
        receive(arrays)


def test_a_site_that_suppresses_too_little_is_refused():
    with pytest.raises(UpdateError, match="groups of 5 patients, expected at least 10"):
        receive(sent(), min_cell=10)


def break_run_count(arrays):
    arrays["runs"][0, 4] = 2


def break_tiling(arrays):
    arrays["runs"][0, 2] = 1


def break_mean(arrays):
    arrays["runs"][0, 5] = arrays["runs"][0, 3] + 1


def break_total(arrays):
    arrays["runs"][0, 4] += 5


def break_confidence(arrays):
    arrays["runs"][-1, 4] += 5


def break_hits(arrays):
    arrays["classes"][0, 2] = 201


def break_small_hits(arrays):
    arrays["classes"][0, 1:3] = 1


def break_false_alarms(arrays):
    arrays["classes"][0, 3:5] = (9, 8)


def break_correct(arrays):
    arrays["header"][6] = 201


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (break_run_count, "runs that do not tile the grid or hold too few"),
        (break_tiling, "runs that do not tile the grid or hold too few"),
        (break_mean, "runs that do not tile the grid or hold too few"),
        (break_total, "positives and negatives do not add up"),
        (break_confidence, "confidences that do not add up"),
        (break_hits, "hits out of range"),
        (break_small_hits, "hits out of range"),
        (break_false_alarms, "false alarms out of range"),
        (break_correct, "correct images out of range"),
    ],
)
def test_a_summary_that_contradicts_itself_is_refused(damage, finding):
    arrays = sent()
    damage(arrays)
    with pytest.raises(UpdateError, match=finding):
        receive(arrays)
