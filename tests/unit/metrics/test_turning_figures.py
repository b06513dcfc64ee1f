"""delta_rot's figures, against their definitions and against scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from popmi_core.errors import UpdateError
from popmi_core.metrics.accumulators import ScoreAccumulator, TurningAccumulator
from popmi_core.metrics.calibration import brier, expected_calibration_error
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.discrimination import binary_auroc
from popmi_core.metrics.resampling import Interval, interval, ratio_interval, resample, weighted_auroc
from popmi_core.metrics.turning import softmax, turning_figures
from popmi_core.metrics.twin import invariant_twin, spread

ANGLES = (0.0, 90.0, 180.0)


def _case(images: int = 40, classes: int = 3, move: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, images)
    upright = rng.normal(size=(images, classes)) + 2 * np.eye(classes)[target]
    logits = np.stack([upright, upright + move * rng.normal(size=upright.shape), upright])
    return logits, target, np.stack([np.hstack([upright, upright**2])] * 3)


def test_figures_are_their_definitions():
    logits, target, _ = _case()
    found = turning_figures(logits, target, angles=ANGLES)
    scores = softmax(logits)
    variation = np.abs(scores[1:] - scores[0]).sum(axis=2) / 2
    flips = (logits[1:].argmax(axis=2) != logits[0].argmax(axis=1)).astype(float)
    value = {name: figure.value for name, figure in found.figures.items()}
    assert math.isclose(value["total_variation"], variation.mean(), rel_tol=1e-12)
    assert math.isclose(value["total_variation_max"], variation.max(axis=0).mean(), rel_tol=1e-12)
    assert math.isclose(value["flips"], flips.mean(), rel_tol=1e-12)
    assert math.isclose(value["flipped_ever"], flips.max(axis=0).mean(), rel_tol=1e-12)
    rms = np.sqrt(np.square(logits[1:] - logits[0]).mean()) / spread(logits[0])
    assert math.isclose(value["logit_rms"], rms, rel_tol=1e-12)
    hits = (logits.argmax(axis=2) == target).mean(axis=1)
    assert math.isclose(value["worst_accuracy"], hits.min(), rel_tol=1e-12)
    assert math.isclose(value["accuracy_drop"], hits[0] - hits.min(), abs_tol=1e-12)
    assert found.worst_angle == ANGLES[int(hits.argmin())]


def test_figures_at_every_angle_are_those_of_the_usual_functions():
    logits, target, _ = _case()
    found = turning_figures(logits, target, angles=ANGLES)
    for place, table in enumerate(softmax(logits)):
        assert math.isclose(found.by_angle["ece"][place], expected_calibration_error(table, target), rel_tol=1e-9)
        assert math.isclose(found.by_angle["brier"][place], brier(table, target), rel_tol=1e-12)
        reference = roc_auc_score(target, table, multi_class="ovr", average="macro")
        assert math.isclose(found.by_angle["auroc"][place], reference, rel_tol=1e-12)
    assert found.figures["worst_auroc"].value == min(found.by_angle["auroc"])
    assert found.figures["worst_ece"].value == max(found.by_angle["ece"])


def test_a_model_that_does_not_move_has_figures_of_nothing():
    logits, target, _ = _case(move=0.0)
    found = turning_figures(logits, target, angles=ANGLES)
    assert all(found.figures[name].value == 0 for name in ("total_variation", "logit_rms", "flips", "accuracy_drop"))
    assert found.figures["flipped_ever"].upper == 0


def test_intervals_hold_their_figures_and_shrink_with_more_images():
    few, many = (turning_figures(*_case(images)[:2], angles=ANGLES).figures for images in (30, 600))
    for name in ("total_variation", "logit_rms", "flips", "worst_brier"):
        assert few[name].lower <= few[name].value <= few[name].upper
        assert many[name].upper - many[name].lower < few[name].upper - few[name].lower


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    logits, target, _ = _case(images=500)
    found = turning_figures(logits, target, angles=ANGLES, resamples=2000).figures["total_variation"]
    scores = softmax(logits)
    per_image = (np.abs(scores[1:] - scores[0]).sum(axis=2) / 2).mean(axis=0)
    error = per_image.std() / math.sqrt(len(per_image))
    # Percentiles of 2000 draws: within a tenth.
    assert math.isclose(found.upper - found.lower, 2 * 1.96 * error, rel_tol=0.1)


def test_the_order_of_images_changes_nothing():
    logits, target, features = _case()
    order = np.random.default_rng(1).permutation(len(target))
    first = turning_figures(logits, target, angles=ANGLES, invariant=features)
    second = turning_figures(logits[:, order], target[order], angles=ANGLES, invariant=features[:, order])
    # As text: what is undefined (NaN) equals itself.
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_another_seed_gives_other_intervals_and_the_same_figures():
    logits, target, _ = _case()
    first, second = (turning_figures(logits, target, angles=ANGLES, seed=seed).figures for seed in (0, 1))
    assert first["flips"].value == second["flips"].value
    assert first["total_variation"].lower != second["total_variation"].lower


def test_without_labels_what_needs_none_is_told():
    logits, _, _ = _case()
    found = turning_figures(logits, None, angles=ANGLES)
    assert "worst_accuracy" not in found.figures
    assert set(found.by_angle) == {"total_variation", "flips"}
    assert found.worst_angle == 90.0


def test_a_class_nobody_has_is_left_out_of_auroc():
    logits, target, _ = _case(classes=4)
    target = np.minimum(target, 2)
    found = turning_figures(logits, target, angles=ANGLES)
    scores = softmax(logits[0])
    expected = np.mean([binary_auroc(scores[:, c], target == c) for c in range(3)])
    assert math.isclose(found.by_angle["auroc"][0], expected, rel_tol=1e-12)


def test_auroc_of_a_draw_is_that_of_its_images():
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
    weights = resample(30, resamples=20, seed=0)
    for area, counts in zip(weighted_auroc(scores, positive, weights), weights, strict=True):
        again = np.repeat(np.arange(30), counts.astype(int))
        assert math.isclose(area, binary_auroc(scores[again], positive[again]), rel_tol=1e-12)


def test_draws_without_a_value_are_left_out_of_the_interval():
    found = interval(np.array([0.5, np.nan, 0.4, 0.6]))
    assert (found.value, round(found.lower, 3), round(found.upper, 3)) == (0.5, 0.405, 0.595)
    assert math.isnan(interval(np.array([0.5, np.nan])).lower)


def test_an_infinite_multiple_has_no_finite_upper_end():
    under = np.array([0.0, *[0.5] * 200])
    found = ratio_interval(np.ones(201), under)
    # The figure itself stands over a floor of 0; no draw does.
    assert (found.value, found.lower, found.upper) == (math.inf, 2.0, math.inf)


def test_infinite_draws_are_the_largest_and_empty_ones_are_left_out():
    over, under = np.ones(201), np.full(201, 0.5)
    under[1:11] = 0
    found = ratio_interval(over, under)
    # A twentieth of the draws is above all numbers: more than the upper tail, less than all.
    assert (found.value, found.lower, found.upper) == (2.0, 2.0, math.inf)
    over[1:11] = 0
    assert ratio_interval(over, under) == Interval(2.0, 2.0, 2.0)
    under[1:] = 0
    over[1:] = 1
    assert ratio_interval(over, under) == Interval(2.0, math.inf, math.inf)


def test_nothing_over_nothing_has_neither_value_nor_interval():
    over, under = np.zeros(5), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    found = ratio_interval(over, under)
    assert all(math.isnan(number) for number in found.to_json().values())


def test_finite_multiples_have_the_percentiles_of_their_draws():
    rng = np.random.default_rng(0)
    over, under = rng.random(201) + 1, rng.random(201) + 1
    assert ratio_interval(over, under) == interval(over / under)


def test_multiples_of_a_twin_that_does_not_move_are_infinite_up_to_their_ends():
    logits, target, features = _case()
    found = turning_figures(logits, target, angles=ANGLES, invariant=features)
    assert found.floor.figures["flips"].value == 0
    assert found.over_floor["flips"] == Interval(math.inf, math.inf, math.inf)


def test_an_invariant_function_is_at_its_own_floor():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 200, 5)) + 1e-3 * rng.normal(size=(3, 200, 5))
    logits = features @ rng.normal(size=(5, 3))
    found = turning_figures(logits, None, angles=ANGLES, invariant=features)
    # The regression finds the function itself, up to a penalty of 1e-6.
    assert math.isclose(found.over_floor["logit_rms"].value, 1.0, rel_tol=1e-3)


def test_the_twin_has_the_spread_of_the_model_and_ignores_constant_features():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(2, 50, 4)), np.full((2, 50, 1), 7.0)], axis=2)
    logits = rng.normal(size=(50, 3))
    twin = invariant_twin(features, logits)
    assert math.isclose(spread(twin[0]), spread(logits), rel_tol=1e-12)
    assert np.allclose(twin, invariant_twin(features[..., :4], logits), atol=1e-12)


def test_a_model_that_says_the_same_of_all_images_has_a_twin_that_does():
    twin = invariant_twin(np.random.default_rng(0).normal(size=(2, 10, 3)), np.ones((10, 2)))
    assert np.allclose(twin, 1.0)
    assert np.allclose(invariant_twin(np.ones((2, 10, 3)), np.random.default_rng(0).normal(size=(10, 2))).std(1), 0)


def test_the_twin_of_images_that_are_copies_of_each_other_is_finite(monkeypatch):
    # Two kinds of images and two features that say the same: the second singular value is 0, or 1e-16 by rounding,
    # which depends on the machine.
    svd = np.linalg.svd

    def rounded(design, **settings):
        left, singular, right = svd(design, **settings)
        return left, np.where(singular < 1e-12, 0.0, singular), right

    monkeypatch.setattr(np.linalg, "svd", rounded)
    upright = np.array([[1.0, 1.0], [-1.0, -1.0]] * 2)
    logits = np.array([[2.0, 0.0], [0.0, 1.0]] * 2)
    twin = invariant_twin(np.stack([upright, 0.9 * upright]), logits)
    # The scale of the logits' spread takes the penalty away again.
    assert np.allclose(twin[0], logits, atol=1e-12)
    assert np.allclose(twin[1] - logits.mean(axis=0), 0.9 * (logits - logits.mean(axis=0)), atol=1e-12)


@pytest.mark.parametrize("images", [3, 40])
def test_the_twin_is_the_ridge_regression_of_the_normal_equations(images):
    rng = np.random.default_rng(0)
    features, logits = rng.normal(size=(2, images, 5)), rng.normal(size=(images, 3))
    standard = (features - features[0].mean(axis=0)) / features[0].std(axis=0)
    wanted, best = logits - logits.mean(axis=0), (np.inf, np.empty(0))
    for share in 10.0 ** np.arange(-6, 4):
        gram = standard[0].T @ standard[0]
        # Of the eigenvalues that are there: with few images, fewer than features.
        penalty = share * np.trace(gram) / min(images, 5)
        hat = standard[0] @ np.linalg.solve(gram + penalty * np.eye(5), standard[0].T)
        error = np.square(wanted - hat @ wanted).sum() / (images - 1 - np.trace(hat)) ** 2
        weights = np.linalg.solve(gram + penalty * np.eye(5), standard[0].T @ wanted)
        best = min(best, (error, weights), key=lambda one: one[0])
    moved = standard @ best[1]
    expected = logits.mean(axis=0) + moved * spread(logits) / spread(moved[0])
    # Normal equations at a penalty of 1e-6 cost six of sixteen digits.
    assert np.allclose(invariant_twin(features, logits), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("logits", "angles", "message"),
    [
        (np.zeros((3, 4)), ANGLES, "expected .angles >= 2"),
        (np.zeros((2, 4, 2)), ANGLES, "for 3 angles"),
        (np.zeros((3, 1, 2)), ANGLES, "images >= 2"),
        (np.zeros((3, 4, 2)), (10.0, 20.0, 30.0), "first angle is 10"),
        (np.full((3, 4, 2), np.nan), ANGLES, "4 of 4 images have logits that are NaN"),
    ],
)
def test_logits_that_make_no_curve_are_refused(logits, angles, message):
    with pytest.raises(UpdateError, match=message):
        turning_figures(logits, None, angles=angles)


def test_features_of_other_images_are_refused():
    logits, target, features = _case()
    with pytest.raises(UpdateError, match="invariant features have shape"):
        turning_figures(logits, target, angles=ANGLES, invariant=features[:, 1:])


def test_batches_in_any_order_give_the_figures_of_all():
    logits, target, features = _case()
    first, second = TurningAccumulator(ANGLES), TurningAccumulator(ANGLES)
    for part, accumulator in ((slice(25, 40), first), (slice(0, 1), first), (slice(1, 25), second)):
        accumulator.update(logits[:, part], target[part], features[:, part])
    first.merge(second)
    whole = turning_figures(logits, target, angles=ANGLES, invariant=features)
    assert json.dumps(first.compute().to_json()) == json.dumps(whole.to_json())


def test_scores_in_any_order_give_the_metrics_of_all():
    logits, target, _ = _case()
    scores = softmax(logits[0])
    first, second = ScoreAccumulator(3), ScoreAccumulator(3)
    for part, accumulator in ((slice(30, 40), first), (slice(0, 7), second), (slice(7, 30), second)):
        accumulator.update(scores[part], target[part])
    first.merge(second)
    found, whole = first.compute(), classification_metrics(scores, target)
    # Sums of float64 in another order.
    assert all(math.isclose(found[name], whole[name], rel_tol=1e-12) for name in whole)
    first.reset()
    with pytest.raises(UpdateError, match="no batch was given"):
        first.compute()


def test_accumulators_refuse_what_does_not_belong_together():
    logits, target, features = _case()
    scores = ScoreAccumulator(4)
    with pytest.raises(UpdateError, match="scores of 3 classes, expected 4"):
        scores.update(softmax(logits[0]), target)
    with pytest.raises(UpdateError, match="cannot merge scores of 3 classes"):
        scores.merge(ScoreAccumulator(3))
    turning = TurningAccumulator(ANGLES)
    with pytest.raises(UpdateError, match="the angles differ"):
        turning.merge(TurningAccumulator((0.0, 45.0)))
    turning.update(logits, target)
    other = TurningAccumulator(ANGLES)
    other.update(logits, target, features)
    with pytest.raises(UpdateError, match="has 3 classes, labels, 6 invariant features, those before it 3 classes"):
        turning.merge(other)
    turning.merge(TurningAccumulator(ANGLES))
    turning.reset()
    with pytest.raises(UpdateError, match="no batch was given"):
        turning.compute()


@pytest.mark.parametrize(
    ("classes", "target", "width", "message"),
    [
        (3, np.zeros(5, int), 6, r"target has shape \(5,\), expected \(4,\)"),
        (3, np.full(4, 3), 6, "class numbers outside"),
        (3, np.zeros(4, int), (3, 5, 6), r"invariant features have shape \(3, 5, 6\)"),
        (3, np.zeros(4, int), (3, 4), r"invariant features have shape \(3, 4\)"),
        (3, np.zeros(4, int), 5, "labels, 5 invariant features, those before it 3 classes, labels, 6"),
        (3, np.zeros(4, int), None, "labels, no invariant features, those before"),
        (3, None, 6, "has 3 classes, no labels, 6"),
        (2, np.zeros(4, int), 6, "has 2 classes"),
    ],
)
def test_a_batch_of_turned_images_that_is_refused_leaves_nothing_behind(classes, target, width, message):
    logits, labels, features = _case()
    turning = TurningAccumulator(ANGLES)
    turning.update(logits, labels, features)
    before = json.dumps(turning.compute().to_json())
    shape = (3, 4, width) if isinstance(width, int) else width
    with pytest.raises(UpdateError, match=message):
        turning.update(np.zeros((3, 4, classes)), target, None if shape is None else np.zeros(shape))
    assert json.dumps(turning.compute().to_json()) == before


def test_scores_that_are_refused_leave_nothing_behind():
    logits, target, _ = _case()
    scores = ScoreAccumulator(3)
    scores.update(softmax(logits[0]), target)
    before = scores.compute()
    for values, labels in ((softmax(logits[0]), target[1:]), (2 * softmax(logits[0]), target)):
        with pytest.raises(UpdateError):
            scores.update(values, labels)
    assert scores.compute() == before
