"""One layer: permutation of units and rotation of inputs, against brute force."""

import itertools

import ot
import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order
from popmi_core.matching.layer import match_layer, transport_plan
from popmi_core.matching.procrustes import polar


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(w1, w2):
    """The least |W1 - P W2 R|^2: every order, each with its best rotation (a nuclear norm)."""
    energy = w1.square().sum() + w2.square().sum()
    orders = itertools.permutations(range(len(w1)))
    return float(energy - 2 * max(torch.linalg.svdvals(w2[list(order)].T @ w1).sum() for order in orders))


def planted(units, fan, seed, noise):
    w1 = normal(units, fan, seed=seed)
    rotation = torch.linalg.qr(normal(fan, fan, seed=seed + 1)).Q
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    return w1, (w1 @ rotation)[order] + noise * normal(units, fan, seed=seed + 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("units", "fan"), [(4, 3), (5, 4), (6, 4), (6, 8)])
def test_a_planted_map_is_found_exactly(units, fan, seed):
    w1, w2 = planted(units, fan, seed, noise=0.0)

    found = match_layer(w1, w2)

    # Rounding of a squared distance between matrices of size about 30.
    assert found.distances[-1] < 1e-20
    torch.testing.assert_close(w2[found.perm] @ found.rotation, w1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_under_noise_it_is_as_good_as_brute_force(seed, noise):
    w1, w2 = planted(6, 4, seed, noise)

    # Both are sums of the same numbers in another order.
    assert match_layer(w1, w2, starts=32).distances[-1] == pytest.approx(brute_force(w1, w2), rel=1e-9)


def test_unrelated_layers_are_never_below_brute_force_and_mostly_reach_it():
    pairs = [(normal(5, 3, seed=seed), normal(5, 3, seed=100 + seed)) for seed in range(12)]

    ratios = [match_layer(w1, w2, starts=32).distances[-1] / brute_force(w1, w2) for w1, w2 in pairs]

    # Local optima remain: the worst of a hundred random pairs was 1.45 times the optimum, one of these twelve is 1.02.
    assert all(1 - 1e-9 <= ratio <= 1.5 for ratio in ratios)
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) >= 10


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_never_rises(seed):
    distances = match_layer(normal(20, 10, seed=seed), normal(20, 10, seed=50 + seed), starts=0).distances

    # Rounding of sums of about 400.
    assert all(later <= earlier + 1e-10 for earlier, later in itertools.pairwise(distances))


def test_the_same_seed_gives_the_same_answer():
    w1, w2 = normal(8, 4), normal(8, 4, seed=1)

    one, other = (match_layer(w1, w2, generator=torch.Generator().manual_seed(4)) for _ in range(2))

    assert torch.equal(one.perm, other.perm)
    assert torch.equal(one.rotation, other.rotation)


def test_layers_of_different_shape_are_refused():
    with pytest.raises(UpdateError, match=r"W2 has shape \(3, 2\), expected a matrix like W1, \(4, 2\)"):
        match_layer(normal(4, 2), normal(3, 2))


def test_nan_is_refused():
    with pytest.raises(UpdateError, match="match_layer: a weight is NaN or infinite"):
        match_layer(normal(2, 2), torch.full((2, 2), torch.inf))


@pytest.mark.parametrize("reg", [0.5, 5.0])
def test_a_plan_is_the_one_of_pot(reg):
    cost = normal(7, 7).square()

    plan = transport_plan(cost, reg)

    # POT's marginals are 1/n each and it stops at 1e-13; ours are 1 and stop at 1e-11.
    weights = torch.full((7,), 1 / 7, dtype=torch.float64)
    wanted = 7 * ot.sinkhorn(weights, weights, cost, reg, method="sinkhorn_log", numItermax=5_000, stopThr=1e-13)
    torch.testing.assert_close(plan, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reg", [0.003, 0.03, 0.3])
def test_the_regularised_objective_never_rises(seed, reg):
    w1, w2 = normal(12, 6, seed=seed), normal(12, 6, seed=50 + seed)

    distances = match_layer(w1, w2, assignment="soft", entropic_reg=reg, starts=0).distances

    # Rounding of sums of about 100.
    assert all(later <= earlier + 1e-10 for earlier, later in itertools.pairwise(distances))


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_map_is_found_softly(seed):
    w1, w2 = planted(6, 4, seed, noise=0.1)

    soft = match_layer(w1, w2, assignment="soft", entropic_reg=0.01, starts=4)

    assert torch.equal(soft.perm, match_layer(w1, w2, starts=32).perm)
    # A permutation is a plan of entropy 0, so the relaxed optimum is not above the best of them; turns end near it.
    assert soft.distances[-1] <= brute_force(w1, w2) * (1 + 1e-3)
    torch.testing.assert_close(soft.plan.sum(0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(soft.plan.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(soft.rotation @ soft.rotation.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_almost_without_regularisation_it_is_as_good_as_brute_force(seed):
    w1, w2 = planted(5, 4, seed, noise=0.1)

    soft = match_layer(w1, w2, assignment="soft", entropic_reg=0.001, starts=4)
    order = soft.perm
    reached = (w1 - w2[order] @ polar(w2[order].T @ w1)).square().sum()

    # The order of the plan with its own best rotation: sums of the same numbers in another order.
    assert float(reached) == pytest.approx(brute_force(w1, w2), rel=1e-9)


def test_much_regularisation_shares_every_unit_equally():
    plan = match_layer(normal(6, 3), normal(6, 3, seed=1), assignment="soft", entropic_reg=1e4).plan

    torch.testing.assert_close(plan, torch.full((6, 6), 1 / 6, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_hard_match_has_its_permutation_as_plan():
    w1, w2 = planted(5, 4, 1, noise=0.0)

    found = match_layer(w1, w2)

    assert torch.equal(found.plan @ w2, w2[found.perm])


def test_layers_of_zeros_have_a_soft_match():
    found = match_layer(torch.zeros(3, 2), torch.zeros(3, 2), assignment="soft")

    torch.testing.assert_close(found.plan, torch.full((3, 3), 1 / 3, dtype=torch.float64))


def test_no_regularisation_is_refused():
    with pytest.raises(UpdateError, match="entropic_reg is 0, expected more than 0"):
        match_layer(normal(4, 2), normal(4, 2), assignment="soft", entropic_reg=0)


def test_a_plan_that_ran_out_of_rounds_is_still_a_plan():
    # Costs ten thousand times the regularisation, and no order that is best by far.
    cost = normal(30, 30, seed=5).square()

    plan = transport_plan(cost, 1e-4)

    ones = torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(0), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.sum(1), ones, rtol=0, atol=1e-12)
    assert float(plan.min()) >= 0
    best = cost.gather(1, best_order(-cost)[:, None]).sum()
    # Near the exact assignment, and by Birkhoff never below it.
    assert float(best) - 1e-9 <= float((plan * cost).sum()) <= 1.2 * float(best)
