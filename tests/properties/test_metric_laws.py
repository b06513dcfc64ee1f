"""Laws of the metrics, of the histograms that travel, and of the bounds that come out."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.metrics import ScoreSummary, classification_metrics, pool_summaries, summarise_scores
from popmi_core.metrics.discrimination import average_precision, binary_auroc, confusion
from popmi_core.metrics.figures import auprc_macro, auroc_macro_ovr, expected_calibration_error, rotation_consistency
from popmi_core.metrics.histograms import NUM_CELLS, count_cells, merge_small_cells
from popmi_core.metrics.placement import highest_mean, place
from popmi_core.metrics.suppression import classes_to_tell, interval

FIGURES = ("auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece")
seeds = st.integers(0, 2**32 - 1)


def make_site(rng: np.random.Generator, num_images: int, num_classes: int):
    """Scores of many characters: sharp or flat, right or wrong, tied or saturated, skewed classes."""
    skew = rng.dirichlet(np.full(num_classes, 0.5)) + 0.01
    target = rng.choice(num_classes, size=num_images, p=skew / skew.sum())
    logits = rng.standard_t(2, (num_images, num_classes)) * rng.choice([0.2, 1.0, 10.0])
    logits += rng.choice([-2.0, 0.0, 2.0, 6.0]) * np.eye(num_classes)[target]
    if rng.random() < 0.3:
        logits = np.round(logits)
    odds = np.exp(np.clip(logits - logits.max(axis=1, keepdims=True), -700, 0))
    return odds / odds.sum(axis=1, keepdims=True), target


def exact_figures(sites, summaries):
    """The figures from all scores, over the patients that the pooled figures speak of."""
    told = [pair for pair in zip(sites, summaries, strict=True) if pair[1].num_examples]
    if not told:
        return {}
    scores, target = (np.concatenate([site[part] for site, _ in told]) for part in (0, 1))
    rows = []
    for c in range(scores.shape[1]):
        telling = [site for site, summary in told if summary.told[c]]
        if not telling:
            continue
        values, labels = (np.concatenate([site[part] for site in telling]) for part in (0, 1))
        table = confusion(values.argmax(axis=1), labels, scores.shape[1])
        hits, support, called = table[c, c], table[c].sum(), table[:, c].sum()
        ranking = binary_auroc(values[:, c], labels == c), average_precision(values[:, c], labels == c)
        rows.append([*ranking, 2 * hits / (support + called), hits / support])
    figures = dict(zip(FIGURES[:4], np.mean(rows, axis=0), strict=True)) if rows else {}
    hit = (scores.argmax(axis=1) == target).mean()
    return {**figures, "accuracy": hit, "ece": expected_calibration_error(scores, target)}


@given(seeds, st.integers(1, 5), st.integers(2, 5), st.sampled_from([2, 5, 11]))
@settings(max_examples=150, deadline=None)
def test_the_exact_pooled_figure_lies_inside_the_bounds(seed, num_sites, num_classes, min_cell):
    rng = np.random.default_rng(seed)
    sites = [make_site(rng, int(rng.choice([3, 8, 25, 120])), num_classes) for _ in range(num_sites)]
    summaries = [summarise_scores(*site, min_cell=min_cell) for site in sites]
    pooled = pool_summaries(summaries)
    telling = list(zip(sites, summaries, strict=True))
    for column, count in zip(pooled.classes, pooled.support, strict=True):
        assert count == sum(int((site[1] == column).sum()) for site, summary in telling if summary.told[column])
    for name, exact in exact_figures(sites, summaries).items():
        figure = getattr(pooled, name)
        assert figure.lower <= exact <= figure.upper, name
        assert figure.lower <= figure.value <= figure.upper, name


@given(seeds, st.permutations(range(4)))
@settings(max_examples=150, deadline=None)
def test_the_order_of_sites_does_not_change_a_bit(seed, order):
    rng = np.random.default_rng(seed)
    summaries = [summarise_scores(*make_site(rng, 60, 3)) for _ in range(4)]
    forward, shuffled = pool_summaries(summaries), pool_summaries([summaries[site] for site in order])
    assert repr(forward) == repr(shuffled)


@given(seeds, st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_what_arrives_is_what_was_sent(seed, num_images):
    summary = summarise_scores(*make_site(np.random.default_rng(seed), num_images, 4))
    arrays = summary.to_arrays()
    arrived = ScoreSummary.from_arrays(arrays, site="msk", num_classes=4)
    assert all((arrived.to_arrays()[name] == values).all() for name, values in arrays.items())
    assert repr(pool_summaries([arrived])) == repr(pool_summaries([summary]))


@given(seeds, st.integers(1, 200), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_no_number_is_told_of_fewer_patients_than_the_smallest_cell(seed, num_images, min_cell):
    summary = summarise_scores(*make_site(np.random.default_rng(seed), num_images, 4), min_cell=min_cell)
    for runs in (*summary.positive, *summary.negative, summary.wrong, summary.right):
        assert (runs.count >= min_cell).all()
    for c, (low, high) in enumerate(summary.hits.tolist()):
        if summary.told[c] and low == high:
            assert min_cell <= low <= summary.positive[c].total - min_cell


def least_in_every_interval(cells: int, patients: int, min_cell: int):
    """Per message, the fewest patients that any histogram with this message has in each interval of cells."""
    least: dict[tuple, dict[tuple[int, int], int]] = defaultdict(dict)
    for split in itertools.combinations(range(patients + cells - 1), cells - 1):
        counts = np.diff([-1, *split, patients + cells - 1]) - 1
        runs = merge_small_cells(counts, min_cell=min_cell)
        message = tuple(zip(runs.first.tolist(), runs.last.tolist(), runs.count.tolist(), strict=True))
        for start, stop in itertools.combinations(range(cells + 1), 2):
            inside = int(counts[start:stop].sum())
            least[message][start, stop] = min(inside, least[message].get((start, stop), inside))
    return least


@pytest.mark.parametrize(("patients", "min_cell"), [(1, 2), (4, 2), (7, 2), (7, 3), (9, 3)])
def test_extents_and_counts_never_pin_a_small_group_even_to_a_reader_who_knows_the_rule(patients, min_cell):
    # Every histogram on 8 cells: grouping them by message is all that the cleverest reader can do.
    for least in least_in_every_interval(8, patients, min_cell).values():
        assert not any(0 < fewest < min_cell for fewest in least.values() if patients >= min_cell)


@pytest.mark.parametrize("group", range(5, 24))
def test_a_told_count_never_pins_a_small_group(group):
    by_message = defaultdict(list)
    for count in range(group + 1):
        low, high = interval(count, group, min_cell=5)
        assert low <= count <= high
        by_message[low, high].append(count)
    for counts in by_message.values():
        assert not 0 < min(counts) < 5
        assert not 0 < group - max(counts) < 5


@given(st.lists(st.integers(0, 30), min_size=2, max_size=7))
def test_classes_kept_back_hold_together_no_small_group(support):
    counts = np.array(support)
    told = classes_to_tell(counts, min_cell=5)
    assert (counts[told] >= 5).all()
    assert told.all() or not told.any() or counts[~told].sum() >= 5


@given(seeds, st.integers(5, 300))
@settings(max_examples=100, deadline=None)
def test_every_patient_lies_where_its_rank_may_lie(seed, num_patients):
    rng = np.random.default_rng(seed)
    counts = count_cells(rng.beta(*rng.choice([0.1, 0.5, 2.0, 20.0], 2), num_patients))
    runs = merge_small_cells(counts, min_cell=5)
    placed = place(runs)
    cells = np.repeat(np.arange(NUM_CELLS), counts)
    by_rank = np.concatenate([np.sort(part)[::-1] for part in np.split(cells, np.cumsum(runs.count)[:-1])])
    assert (placed.lowest <= by_rank).all()
    assert (by_rank <= placed.highest).all()
    curve = np.cumsum(rng.random(NUM_CELLS) < 0.05).astype(float)
    means = [curve[part].mean() for part in np.split(cells, np.cumsum(runs.count)[:-1])]
    # The dual sum rounds in the last bits only.
    assert (highest_mean(curve, runs) >= np.array(means) - 1e-9).all()


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_ranking_figures_do_not_change_under_monotone_maps(seed):
    scores, target = make_site(np.random.default_rng(seed), 40, 3)
    # Powers of two scale without rounding: no tie is made or broken.
    assert auroc_macro_ovr(scores * 8, target) == pytest.approx(auroc_macro_ovr(scores, target), abs=0, nan_ok=True)
    assert auprc_macro(scores * 8, target) == pytest.approx(auprc_macro(scores, target), abs=0, nan_ok=True)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_the_order_of_images_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    scores, target = make_site(rng, 40, 3)
    order = rng.permutation(40)
    shuffled = classification_metrics(scores[order], target[order])
    # Sums of 40 float64 terms in another order.
    assert shuffled == pytest.approx(classification_metrics(scores, target), abs=1e-13, nan_ok=True)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_swapping_positives_and_negatives_mirrors_auroc(seed):
    rng = np.random.default_rng(seed)
    scores, positive = np.round(rng.random(30), 1), np.arange(30) % 3 == 0
    # One rounding of a quotient on each side.
    assert binary_auroc(scores, positive) + binary_auroc(scores, ~positive) == pytest.approx(1, abs=1e-15)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_repeating_all_images_changes_nothing(seed):
    scores, target = make_site(np.random.default_rng(seed), 30, 3)
    twice = classification_metrics(np.repeat(scores, 2, axis=0), np.repeat(target, 2))
    # Sums of 60 float64 terms against 30.
    assert twice == pytest.approx(classification_metrics(scores, target), abs=1e-13, nan_ok=True)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_order_of_turns_does_not_change_consistency(seed):
    rng = np.random.default_rng(seed)
    turned = rng.dirichlet(np.ones(3), (4, 20))
    assert rotation_consistency(turned) == rotation_consistency(turned[rng.permutation(4)])
