"""Transport of units against POT and scipy, and against trying every order."""

from itertools import permutations

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from popmi_core.config import FuseConfig
from popmi_core.fusion import Update, fedma, git_rebasin, ot_fusion
from popmi_core.fusion.ot_fusion import distances
from popmi_core.fusion.permutable import Visit, permutable
from popmi_core.fusion.transport import assign, entropic, exact, solve
from popmi_core.matching.builder import Builder
from popmi_core.matching.symmetry import Space


@pytest.fixture(params=range(4))
def cost(request):
    source = np.random.default_rng(request.param)
    return cdist(source.normal(size=(9, 5)), source.normal(size=(9, 5)))


def two_layers(seed, units=6):
    source = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (units, 4), "a.bias": (units,), "b.weight": (3, units), "b.bias": (3,)}
    return {n: torch.randn(shape, generator=source, dtype=torch.float64) for n, shape in shapes.items()}


def described(state, units=6):
    build = Builder("two", state)
    build.space("h", "permutation", units)
    build.linear("a", writes="h")
    build.linear("b", reads="h")
    return build.done()


def test_exact_transport_is_scipys_assignment(cost):
    rows, columns = linear_sum_assignment(cost)

    for solver in (assign, exact):
        plan = solver(cost)
        # POT returns flows of 1/9; times nine they are one up to rounding.
        np.testing.assert_allclose(plan[rows, columns], 1, rtol=1e-12)
        assert (plan * cost).sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-12)


def test_soft_plans_have_uniform_marginals(cost):
    plan = entropic(0.05)(cost)

    np.testing.assert_allclose(plan.sum(axis=1), 1, rtol=1e-9)
    # The solver stops when its columns are this close.
    np.testing.assert_allclose(plan.sum(axis=0), 1, atol=2e-3)


def test_soft_plans_are_pots_plain_sinkhorn(cost):
    weights = np.full(9, 1 / 9)
    expected = 9 * ot.sinkhorn(weights, weights, cost / cost.mean(), 0.1, method="sinkhorn", stopThr=1e-12)

    # The stopping rule's tolerance.
    np.testing.assert_allclose(entropic(0.1)(cost), expected, atol=2e-3)


def test_soft_plans_become_exact_ones(cost):
    gaps = [np.abs(entropic(softness)(cost) - exact(cost)).max() for softness in (0.5, 0.05, 0.0005)]

    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.05


def test_costs_are_scipys_distances_of_incoming_weights():
    first, second = two_layers(0), two_layers(1)
    group = permutable(described(first), set(first), rule="test")
    axes = tuple(axis for axis in group.axes("h") if axis.tensor.startswith("a."))

    found = distances(first, second, group, Visit("h", axes))[""]

    rows = [np.column_stack([state["a.weight"].numpy(), state["a.bias"].numpy()]) for state in (first, second)]
    np.testing.assert_allclose(found.numpy(), cdist(*rows), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_hard_fusion_of_two_layers_is_the_papers_by_hand(seed):
    first, second = two_layers(seed), two_layers(seed + 10)
    rows = [np.column_stack([state["a.weight"].numpy(), state["a.bias"].numpy()]) for state in (first, second)]
    order = linear_sum_assignment(cdist(*rows))[1]

    updates = [Update("s0", first, 1), Update("s1", second, 1)]
    fused = ot_fusion.fuse(updates, reference=first, symmetry=described(first), config=FuseConfig()).state

    expected = {"a.weight": second["a.weight"][order], "b.weight": second["b.weight"][:, order]}
    for name, moved in expected.items():
        torch.testing.assert_close(fused[name], (first[name] + moved) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_one_hidden_layer_is_matched_as_well_as_by_trying_every_order(seed):
    first, second = two_layers(seed), two_layers(seed + 10)
    updates = [Update("s0", first, 1), Update("s1", second, 1)]

    def energy(orders, names):
        moved = {"a.weight": second["a.weight"][orders], "a.bias": second["a.bias"][orders]}
        moved["b.weight"] = second["b.weight"][:, orders]
        return sum(float((first[name] - moved[name]).square().sum()) for name in names)

    def reached(fused, names):
        # The average is halfway: the distance to the moved model is twice that to the average.
        return sum(float((2 * (first[name] - fused[name])).square().sum()) for name in names)

    orders = [list(order) for order in permutations(range(6))]
    arriving, everything = ("a.weight", "a.bias"), ("a.weight", "a.bias", "b.weight")
    for rule, names in ((git_rebasin, everything), (fedma, arriving)):
        fused = rule.fuse(updates, reference=first, symmetry=described(first), config=FuseConfig()).state
        best = min(energy(order, names) for order in orders)
        assert reached(fused, names) == pytest.approx(best, rel=1e-10)


def test_two_levels_are_solved_as_well_as_by_trying_all_orders_of_groups_and_inside():
    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    space = Space("g", "grouped", 3, 2)

    plan = solve(space, {"": cost}, assign, {"": "g"})[""]

    table = cost.numpy().reshape(3, 2, 3, 2)
    insides = list(permutations(range(2)))
    best = min(
        sum(min(sum(table[g, u, order[g], inside[u]] for u in range(2)) for inside in insides) for g in range(3))
        for order in permutations(range(3))
    )
    assert (plan * cost.numpy()).sum() == pytest.approx(best, rel=1e-12)
