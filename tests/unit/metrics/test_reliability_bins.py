"""Reliability diagrams from runs: bins of equal parts, bounds that hold, fewer bins of few patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.metrics import pool_summaries, summarise_scores
from popmi_core.metrics.pooling import calibration_of


def site(seed: int, images: int):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, images)
    odds = np.exp(rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[target])
    return odds / odds.sum(axis=1, keepdims=True), target


def exact_accuracies(sites, bins: int) -> np.ndarray:
    """Hits in bins of exactly equal mass, patients on an edge shared, over all sites' scores."""
    confidence = np.concatenate([scores.max(axis=1) for scores, _ in sites])
    hit = np.concatenate([scores.argmax(axis=1) == target for scores, target in sites]).astype(float)
    hit = hit[np.argsort(confidence, kind="stable")]
    edges = np.linspace(0, len(hit), bins + 1)
    running = np.interp(edges, np.arange(len(hit) + 1), np.append(0.0, np.cumsum(hit)))
    return np.diff(running) / (len(hit) / bins)


@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([3, 12, 60, 200]), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_exact_share_of_hits_lies_inside_every_bin_s_bounds(seed, sizes):
    sites = [site(seed + number, images) for number, images in enumerate(sizes)]
    summaries = [summarise_scores(*one) for one in sites]
    bins, ece = calibration_of(summaries)
    telling = [one for one, summary in zip(sites, summaries, strict=True) if summary.num_examples]
    if not telling:
        assert bins == ()
        return
    exact = exact_accuracies(telling, len(bins))
    for one, accuracy in zip(bins, exact, strict=True):
        # The bounds are widened by the rounding of sums only up to 0 and 1.
        assert one.accuracy.lower - 1e-12 <= accuracy <= one.accuracy.upper + 1e-12
        assert one.accuracy.lower <= one.accuracy.value <= one.accuracy.upper
    assert ece == pool_summaries(summaries).ece


def test_bins_rise_in_confidence_and_hold_equal_parts():
    bins, _ = calibration_of([summarise_scores(*site(0, 300))])
    confidences = [one.confidence for one in bins]
    assert len(bins) == 15
    assert confidences == sorted(confidences)
    assert {one.count for one in bins} == {20}


def test_a_likely_confidence_is_near_the_true_one():
    scores, target = site(0, 600)
    bins, _ = calibration_of([summarise_scores(scores, target)])
    true = np.sort(scores.max(axis=1)).reshape(15, 40).mean(axis=1)
    # Of 600 patients runs are short: a bin's mean is off by a few hundredths at most.
    assert np.allclose([one.confidence for one in bins], true, atol=0.05)


@pytest.mark.parametrize(("images", "bins"), [(4, 0), (5, 1), (14, 2), (74, 14), (75, 15), (400, 15)])
def test_no_bin_holds_fewer_than_five_patients(images, bins):
    found, _ = calibration_of([summarise_scores(*site(0, images))])
    assert len(found) == bins
    assert all(one.count >= 5 for one in found)
