"""Proposition 2: which form follows from a Lipschitz constant, which does not, and where a bound is worth nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.errors import UpdateError
from popmi_core.metrics.linebound import line_bound, prior_entropy, slope_lipschitz

TENT = np.minimum(np.linspace(0, 1, 25), 1 - np.linspace(0, 1, 25))


def test_a_tent_breaks_the_form_as_stated_and_meets_the_tight_one() -> None:
    bound = line_bound(TENT, lipschitz=1.0, distance=1.0, trivial=2.0)

    # Everywhere but at both ends: min(a, 1 - a) > a (1 - a) inside.
    assert bound.broken(bound.stated) == 23
    assert bound.broken(bound.tight) == bound.broken(bound.provable) == 0
    assert bound.tight == pytest.approx(TENT, abs=1e-12)


@settings(deadline=None)
@given(
    steps=st.lists(st.floats(-1, 1), min_size=2, max_size=30),
    start=st.floats(0, 5),
    distance=st.floats(0.1, 50),
)
def test_the_provable_and_the_tight_form_hold_on_every_path_with_its_own_constant(
    steps: list[float], start: float, distance: float
) -> None:
    losses = start + np.concatenate([[0.0], np.cumsum(steps)])
    constant = slope_lipschitz(losses, distance=distance)
    bound = line_bound(losses, lipschitz=constant, distance=distance, trivial=1.0)

    assert bound.broken(bound.tight) == bound.broken(bound.provable) == 0
    # Sums of up to thirty steps: rounding in the last digits.
    assert (bound.tight <= bound.provable + 1e-9).all()


def test_the_constant_is_the_steepest_step_per_unit_of_weight() -> None:
    assert slope_lipschitz([1.0, 2.0, 0.5], distance=3.0) == pytest.approx(1.5 / 0.5 / 3, abs=1e-12)


def test_a_bound_above_blind_guessing_is_vacuous() -> None:
    bound = line_bound([0.1, 0.2, 0.1], lipschitz=40.0, distance=1.0, trivial=np.log(8))

    assert bound.vacuous(bound.stated) == 1
    assert bound.broken(bound.stated) == 0


def test_guessing_by_frequency_costs_the_entropy_of_the_classes() -> None:
    assert prior_entropy([0, 1, 2, 3]) == pytest.approx(np.log(4), abs=1e-12)
    assert prior_entropy([3, 3, 3]) == 0


def test_a_negative_constant_is_refused() -> None:
    with pytest.raises(UpdateError, match="expected both at least 0"):
        line_bound([1.0, 1.0, 1.0], lipschitz=-1.0, distance=1.0, trivial=1.0)


def test_one_model_twice_has_no_line() -> None:
    with pytest.raises(UpdateError, match="two models are the same"):
        slope_lipschitz([1.0, 1.0, 1.0], distance=0.0)


def test_no_image_has_no_prior() -> None:
    with pytest.raises(UpdateError, match="no image, expected at least one"):
        prior_entropy([])
