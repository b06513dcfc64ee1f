"""Figures with known answers, and input that is refused."""

from __future__ import annotations

import numpy as np
import pytest

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.metrics import classification_metrics
from popmi_core.metrics.discrimination import confusion
from popmi_core.metrics.figures import (
    auprc_macro,
    auroc_macro_ovr,
    balanced_accuracy,
    brier,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
    rotation_consistency,
    rotation_total_variation,
)

SURE = np.eye(3)[[0, 1, 2, 0]]
TARGET = np.array([0, 1, 2, 0])


def test_a_perfect_and_sure_model_has_perfect_figures():
    figures = classification_metrics(SURE, TARGET)
    # A score of one is clipped by 2.2e-16, which is what the logarithm then shows.
    assert figures.pop("nll") == pytest.approx(0, abs=1e-15)
    perfect = {"auroc": 1, "auprc": 1, "macro_f1": 1, "balanced_accuracy": 1, "accuracy": 1, "ece": 0, "brier": 0}
    assert figures == perfect


def test_equal_scores_have_an_auroc_of_one_half():
    assert auroc_macro_ovr(np.full((4, 3), 1 / 3), TARGET) == 0.5


def test_auroc_without_a_second_class_is_undefined_and_not_one_half():
    scores = np.array([[0.6, 0.4], [0.3, 0.7]])
    assert np.isnan(auroc_macro_ovr(scores, [0, 0]))
    assert np.isnan(auprc_macro(scores, [1, 1]))


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    scores = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    assert auroc_macro_ovr(scores, [0, 1, 0]) == 1.0
    assert balanced_accuracy([0, 1, 0], [0, 1, 0], 3) == 1.0


def test_a_class_predicted_without_occurring_counts_as_zero_f1():
    # Class 0: 2 * 1 / 3; class 1: 0 / 1.
    assert macro_f1([0, 1], [0, 0], 3) == pytest.approx(1 / 3, abs=1e-15)


def test_confusion_counts_target_by_preds():
    assert confusion([0, 1, 1], [0, 0, 1], 2).tolist() == [[1, 1], [0, 1]]


def test_ece_of_one_confidence_is_its_distance_to_the_accuracy():
    scores = np.array([[0.8, 0.2]] * 10)
    # 0.8 stated, 0.5 hit; float64 sums of ten terms.
    assert expected_calibration_error(scores, [0] * 5 + [1] * 5) == pytest.approx(0.3, abs=1e-14)


def test_ece_of_fewer_images_than_bins_is_the_mean_gap():
    scores = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert expected_calibration_error(scores, [1, 1]) == pytest.approx((0.9 + 0.6) / 2, abs=1e-14)


def test_brier_is_two_for_a_sure_and_wrong_model():
    assert brier([[1.0, 0.0]], [1]) == 2.0


def test_nll_is_in_nats_and_stays_finite():
    assert negative_log_likelihood([[0.5, 0.5]], [1]) == pytest.approx(np.log(2), abs=1e-15)
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-np.log(np.finfo(float).eps), abs=1e-12)


def test_half_precision_scores_are_accepted():
    scores = np.random.default_rng(0).dirichlet(np.ones(7), 50).astype(np.float16)
    assert 0 <= classification_metrics(scores, np.arange(50) % 7)["auroc"] <= 1


def test_one_image_of_two_that_flips_halves_the_consistency():
    upright = np.array([[0.9, 0.1], [0.2, 0.8]])
    turned = np.array([[0.9, 0.1], [0.7, 0.3]])
    assert rotation_consistency([upright, upright, turned, upright]) == 0.5
    # One of six pairs moves by one half.
    assert rotation_total_variation([upright, upright, turned, upright]) == pytest.approx(0.5 / 6, abs=1e-15)


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 1)), np.zeros((2, 3, 4))])
def test_scores_of_a_wrong_shape_are_refused(scores):
    with pytest.raises(UpdateError, match=r"expected \(images, classes\)"):
        classification_metrics(scores, [0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(UpdateError, match="1 of 2 images have scores that are NaN or infinite"):
        auroc_macro_ovr([[0.5, 0.5], [bad, 0.5]], [0, 1])


@pytest.mark.parametrize("target", [[0], [[0], [1]], [0, 1, 1]])
def test_targets_of_a_wrong_shape_are_refused(target):
    with pytest.raises(UpdateError, match=r"target has shape .* expected \(2,\)"):
        auroc_macro_ovr([[0.5, 0.5], [0.1, 0.9]], target)


def test_targets_that_are_not_integers_are_refused():
    with pytest.raises(UpdateError, match="target has type float64, expected integers"):
        auroc_macro_ovr([[0.5, 0.5]], [0.0])


@pytest.mark.parametrize("label", [-1, 2])
def test_class_numbers_out_of_range_are_refused(label):
    with pytest.raises(UpdateError, match=r"class numbers outside 0\.\.1"):
        auroc_macro_ovr([[0.5, 0.5]], [label])


@pytest.mark.parametrize("row", [[2.0, -1.0], [0.5, 0.6], [0.2, 0.2]])
def test_logits_are_refused_where_probabilities_are_needed(row):
    for metric in (classification_metrics, expected_calibration_error, brier, negative_log_likelihood):
        with pytest.raises(UpdateError, match="expected probabilities that sum to one"):
            metric([row], [0])


@pytest.mark.parametrize("bins", [0, -1])
def test_ece_without_a_bin_is_refused_and_with_one_is_the_distance_of_two_means(bins):
    scores = np.array([[0.8, 0.2], [0.6, 0.4]])
    with pytest.raises(ConfigError, match=f"bins is {bins}, expected at least 1"):
        expected_calibration_error(scores, [0, 1], bins=bins)
    assert expected_calibration_error(scores, [0, 1], bins=1) == pytest.approx(0.7 - 0.5, abs=1e-15)


def test_an_empty_set_of_predictions_is_refused():
    with pytest.raises(UpdateError, match="no images to evaluate"):
        macro_f1([], [], 3)


def test_rotations_of_a_wrong_shape_are_refused():
    with pytest.raises(UpdateError, match=r"expected \(rotations >= 2, images >= 1, classes >= 2\)"):
        rotation_consistency(SURE[None])


def test_rotations_with_nan_are_refused():
    with pytest.raises(UpdateError, match="by rotation hold NaN"):
        rotation_consistency([SURE, SURE * np.nan])
