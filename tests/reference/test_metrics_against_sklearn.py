"""Every figure equals scikit-learn's, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from popmi_core.metrics import classification_metrics
from popmi_core.metrics.discrimination import average_precision, binary_auroc
from popmi_core.metrics.figures import (
    accuracy,
    auprc_macro,
    auroc_macro_ovr,
    balanced_accuracy,
    brier,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
)

# Both sides divide the same integers; only the order of a few hundred float64 sums differs.
TOLERANCE = 1e-12


@st.composite
def evaluations(draw):
    """Scores [n, C] with many ties (few levels) or none, and targets that may miss classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_images, num_classes = draw(st.integers(2, 120)), draw(st.integers(2, 6))
    levels = draw(st.sampled_from([2, 3, 10, 10**9]))
    raw = rng.integers(1, levels + 1, (num_images, num_classes)).astype(np.float64)
    present = draw(st.integers(1, num_classes))
    return raw / raw.sum(axis=1, keepdims=True), rng.integers(0, present, num_images)


@given(evaluations())
@settings(max_examples=150, deadline=None)
def test_ranking_figures_equal_scikit_learn_class_by_class(case):
    scores, target = case
    pairs = [(scores[:, c], target == c) for c in range(scores.shape[1])]
    defined = [(values, positive) for values, positive in pairs if 0 < positive.sum() < len(target)]
    if not defined:
        assert np.isnan(auroc_macro_ovr(scores, target))
        assert np.isnan(auprc_macro(scores, target))
        return
    aurocs = [sk.roc_auc_score(positive, values) for values, positive in defined]
    precisions = [sk.average_precision_score(positive, values) for values, positive in defined]
    assert auroc_macro_ovr(scores, target) == pytest.approx(np.mean(aurocs), abs=TOLERANCE)
    assert auprc_macro(scores, target) == pytest.approx(np.mean(precisions), abs=TOLERANCE)
    for (values, positive), auroc, precision in zip(defined, aurocs, precisions, strict=True):
        assert binary_auroc(values, positive) == pytest.approx(auroc, abs=TOLERANCE)
        assert average_precision(values, positive) == pytest.approx(precision, abs=TOLERANCE)


@given(evaluations())
@settings(max_examples=150, deadline=None)
def test_decision_figures_equal_scikit_learn(case):
    scores, target = case
    preds, num_classes = scores.argmax(axis=1), scores.shape[1]
    assert macro_f1(preds, target, num_classes) == pytest.approx(
        sk.f1_score(target, preds, average="macro", zero_division=0), abs=TOLERANCE
    )
    recall = sk.recall_score(target, preds, labels=np.unique(target), average="macro", zero_division=0)
    assert balanced_accuracy(preds, target, num_classes) == pytest.approx(recall, abs=TOLERANCE)
    assert accuracy(preds, target, num_classes) == pytest.approx(sk.accuracy_score(target, preds), abs=TOLERANCE)


@given(evaluations())
@settings(max_examples=60, deadline=None)
def test_probability_figures_equal_scikit_learn(case):
    scores, target = case
    labels = np.arange(scores.shape[1])
    assert negative_log_likelihood(scores, target) == pytest.approx(
        sk.log_loss(target, scores, labels=labels), abs=TOLERANCE
    )
    one_hot = np.eye(len(labels))[target]
    assert brier(scores, target) == pytest.approx(
        sum(sk.mean_squared_error(one_hot[:, c], scores[:, c]) for c in labels), abs=TOLERANCE
    )


def test_macro_auroc_is_scikit_learns_when_all_classes_occur():
    rng = np.random.default_rng(3)
    scores, target = rng.dirichlet(np.ones(5), 200), np.arange(200) % 5
    expected = sk.roc_auc_score(target, scores, multi_class="ovr")
    assert classification_metrics(scores, target)["auroc"] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_ece_is_the_mean_gap_of_scikit_learns_quantile_calibration_curve(seed):
    # 300 images without ties fill 15 bins of exactly 20, where both definitions of equal mass agree.
    rng = np.random.default_rng(seed)
    scores, target = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    hit, confidence = scores.argmax(axis=1) == target, scores.max(axis=1)
    observed, stated = calibration_curve(hit, confidence, n_bins=15, strategy="quantile")
    assert expected_calibration_error(scores, target) == pytest.approx(np.abs(observed - stated).mean(), abs=TOLERANCE)
