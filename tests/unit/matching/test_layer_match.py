"""One layer: permutation of units and rotation of inputs, against brute force."""

import itertools

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching import match_layer


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


@pytest.mark.parametrize("seed", range(12))
def test_unrelated_layers_are_never_below_brute_force_and_mostly_reach_it(seed):
    w1, w2 = normal(5, 3, seed=seed), normal(5, 3, seed=100 + seed)
    best = brute_force(w1, w2)

    found = match_layer(w1, w2, starts=32).distances[-1]

    # Local optima remain: the worst of a hundred random pairs was 1.45 times the optimum.
    assert best * (1 - 1e-9) <= found <= 1.5 * best


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
