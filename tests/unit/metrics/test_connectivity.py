"""Barriers, CKA and likeness of heads: figures with known answers, laws, and input that is refused."""

from __future__ import annotations

import numpy as np
import pytest

from popmi_core.errors import UpdateError
from popmi_core.metrics.connectivity import (
    LinePath,
    accuracy_barrier,
    cka_from_kernels,
    head_similarity,
    linear_cka,
    loss_barrier,
)

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 9))
# Sums of a few thousand float64 products: rounding stays many digits below.
ROUNDING = 1e-10


def test_a_hill_between_two_models_is_measured_from_the_line_between_their_losses() -> None:
    assert loss_barrier([1.0, 3.0, 2.0]) == pytest.approx(1.5, abs=1e-12)


def test_a_valley_between_two_models_is_no_barrier() -> None:
    assert loss_barrier([1.0, 0.5, 2.0]) == 0


def test_a_drop_in_accuracy_is_a_barrier_too() -> None:
    assert accuracy_barrier([0.9, 0.3, 0.7]) == pytest.approx(0.5, abs=1e-12)


def test_a_path_knows_its_barriers_and_places() -> None:
    path = LinePath((0.0, 2.0, 0.0), (1.0, 0.0, 1.0))

    assert (path.barrier, path.accuracy_barrier) == (2.0, 1.0)
    assert path.alphas.tolist() == [0, 0.5, 1]


def test_two_points_cannot_show_a_barrier() -> None:
    with pytest.raises(UpdateError, match=r"losses of a path .* at least 3 finite"):
        loss_barrier([1.0, 2.0])


def test_a_diverged_model_on_the_path_is_refused() -> None:
    with pytest.raises(UpdateError, match="accuracies of a path"):
        accuracy_barrier([0.5, np.nan, 0.5])


def test_features_are_like_themselves_turned_and_scaled() -> None:
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]

    assert linear_cka(FIRST, 3 * FIRST @ turn + 5) == pytest.approx(1, abs=ROUNDING)


def test_cka_equals_the_definition_by_centred_products() -> None:
    x, y = FIRST - FIRST.mean(0), SECOND - SECOND.mean(0)
    expected = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)

    assert linear_cka(FIRST, SECOND) == pytest.approx(expected, abs=ROUNDING)
    # More features than images goes another way to the same figure.
    wide = np.concatenate([SECOND] * 10, axis=1)
    assert linear_cka(FIRST, wide) == pytest.approx(expected, abs=ROUNDING)


def test_kernels_give_the_same_cka_as_the_features() -> None:
    expected = linear_cka(FIRST, SECOND)

    assert cka_from_kernels(FIRST @ FIRST.T, SECOND @ SECOND.T) == pytest.approx(expected, abs=ROUNDING)


def test_cka_of_different_images_is_refused() -> None:
    with pytest.raises(UpdateError, match="features of 40 and 39 images"):
        linear_cka(FIRST, SECOND[1:])


def test_features_that_are_no_table_are_refused() -> None:
    with pytest.raises(UpdateError, match=r"the first table has shape \(40,\)"):
        linear_cka(FIRST[:, 0], SECOND)


def test_a_layer_that_says_the_same_for_every_image_has_no_cka() -> None:
    with pytest.raises(UpdateError, match="the same features for every image"):
        linear_cka(FIRST, np.ones((40, 3)))


def test_kernels_of_different_sizes_are_refused() -> None:
    with pytest.raises(UpdateError, match=r"kernels of shape \(40, 40\) and \(39, 39\)"):
        cka_from_kernels(np.eye(40), np.eye(39))


def _heads(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return RNG.normal(size=(count, 4, 10)), RNG.normal(size=(count, 4, 12))


def test_heads_are_like_themselves_in_any_basis_and_found_in_any_order() -> None:
    left, right = _heads()
    basis = RNG.normal(size=(3, 4, 4))
    order = [2, 0, 1]
    other = (np.linalg.inv(basis).transpose(0, 2, 1) @ left)[order], (basis @ right)[order]

    found = head_similarity((left, right), other)

    # Random bases of four dimensions have condition numbers up to some hundred.
    assert [found[i, order.index(i)] for i in range(3)] == pytest.approx([1, 1, 1], abs=1e-8)


def test_likeness_of_heads_is_the_cosine_of_their_products() -> None:
    (left, right), (other_left, other_right) = _heads(2), _heads(5)
    products, others = left.transpose(0, 2, 1) @ right, other_left.transpose(0, 2, 1) @ other_right
    expected = [[np.sum(p * q) / np.linalg.norm(p) / np.linalg.norm(q) for q in others] for p in products]

    assert head_similarity((left, right), (other_left, other_right)) == pytest.approx(np.array(expected), abs=ROUNDING)


def test_a_head_of_zeros_is_like_none() -> None:
    left, right = _heads()
    left[1] = 0

    assert head_similarity((left, right), (left, right))[1].tolist() == [0, 0, 0]


def test_heads_of_another_width_are_refused() -> None:
    left, right = _heads()
    with pytest.raises(UpdateError, match="with equal dim"):
        head_similarity((left, right), (left[:, :, 1:], right))


def test_heads_with_a_nan_are_refused() -> None:
    left, right = _heads()
    with pytest.raises(UpdateError, match="NaN or infinity"):
        head_similarity((left, right), (left * np.nan, right))
