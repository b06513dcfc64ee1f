"""Known answers: what the rivals' papers state of their methods and what can be checked exactly."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import nn

from popmi_core.config import FuseConfig
from popmi_core.fusion import Score, Update, fedma, fuse, merge_many
from popmi_core.fusion.git_rebasin_activations import match_activations
from popmi_core.fusion.merge_many import likeness
from popmi_core.fusion.permutable import move, permutable, traced
from popmi_core.matching.check import describe_model
from popmi_core.matching.elements import Move
from popmi_core.matching.statistics import cross_statistics

# Sums of the same float64 numbers in another order.
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}


def net(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1]).double().eval()


def described(*widths):
    model = net(*widths)
    symmetry = describe_model(model, image_size=4)
    return symmetry, permutable(symmetry, set(model.state_dict()), rule="test")


def states_of(*widths, count):
    return [{n: t.clone() for n, t in net(*widths, seed=seed).state_dict().items()} for seed in range(count)]


def orders_of(state, group, space):
    """Yield the state with one space in every order."""
    for order in permutations(range(group.spaces[space].size)):
        yield move(state, group, {space: Move(torch.tensor(order))})


def test_git_rebasins_coordinate_descent_rises_at_every_step_and_ends_where_no_layer_alone_does_better(monkeypatch):
    # arXiv:2209.04836, section 3.2: "Algorithm 1 terminates"; every step is an exact assignment, so none loses.
    _, group = described(48, 5, 5, 5, 3)
    target, other = states_of(48, 5, 5, 5, 3, count=2)
    heights, improve = [likeness(target, other, group)], merge_many.improve

    def watched(*args):
        found = improve(*args)
        heights.extend([] if found is None else [likeness(target, found, group)])
        return found

    monkeypatch.setattr(merge_many, "improve", watched)
    found = merge_many.descend(
        target, traced(other, group), group, torch.Generator().manual_seed(0), list(group.spaces)
    )

    assert len(heights) > 3
    assert all(after > before for before, after in pairwise(heights))
    best = max(likeness(target, moved, group) for space in group.spaces for moved in orders_of(found, group, space))
    assert likeness(target, found, group) >= best * (1 - 1e-12)


def test_git_rebasins_merge_many_ends_where_no_layer_of_any_model_fits_the_others_better():
    # Algorithm 3: each model is at a fixed point of matching it to the mean of the others.
    _, group = described(48, 4, 4, 3)
    states = states_of(48, 4, 4, 3, count=3)

    found = merge_many.merge_many(
        states[0], [traced(state, group) for state in states], group, torch.Generator().manual_seed(0)
    )

    for index, own in enumerate(found):
        others = [state for other, state in enumerate(found) if other != index]
        mean = {name: sum(state[name] for state in others) / 2 for name in states[0]}
        best = max(likeness(mean, moved, group) for space in group.spaces for moved in orders_of(own, group, space))
        assert likeness(mean, own, group) >= best - 1e-12 * abs(best)


@pytest.mark.parametrize("correlated", [True, False])
def test_git_rebasins_activation_matching_is_the_least_squares_order_of_section_31(correlated):
    symmetry, group = described(48, 6, 3)
    model, (state, other) = net(48, 6, 3), states_of(48, 6, 3, count=2)
    # Loud units count more in inner products, not in correlations.
    other["1.weight"] *= torch.tensor([9.0, 0.1, 1, 5, 0.3, 2], dtype=torch.float64)[:, None]
    images = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = cross_statistics(model, state, other, symmetry, images)
    (space,), (sums,) = group.spaces, seen.moments.values()
    spreads = [
        (squares.flatten() / sums.count - (total / sums.count).square()).sqrt()
        for squares, total in ((sums.reference, sums.reference_sum), (sums.candidate, sums.candidate_sum))
    ]
    centred = sums.cross / sums.count - torch.outer(sums.reference_sum, sums.candidate_sum) / sums.count**2
    products = {False: sums.cross, True: centred / torch.outer(*spreads)}

    found = match_activations(state, traced(other, group), group, seen, correlated=correlated)

    def best(table):
        return max(permutations(range(6)), key=lambda order: float(table[torch.arange(6), list(order)].sum()))

    expected = move(other, group, {space: Move(torch.tensor(best(products[correlated])))})
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert best(products[True]) != best(products[False])


def test_fedmas_matched_average_does_not_depend_on_how_a_client_numbers_its_units(shuffle):
    # arXiv:2002.06440, section 2.1: what is averaged is permutation invariant.
    symmetry, group = described(48, 12, 12, 5)
    states = states_of(48, 12, 12, 5, count=3)
    renumbered = [states[0], *(shuffle(state, group, seed) for seed, state in enumerate(states[1:]))]

    fused, again = (
        fedma.fuse(
            [Update(f"s{k}", state, 10) for k, state in enumerate(sent)],
            reference=states[0], symmetry=symmetry, config=FuseConfig(),
        ).state
        for sent in (states, renumbered)
    )  # fmt: skip

    assert all(torch.allclose(fused[name], again[name], **ROUNDED) for name in fused)
    assert not torch.allclose(fused["1.weight"], sum(state["1.weight"] for state in states) / 3)


def test_regmean_of_sites_own_regressions_is_the_regression_on_all_their_rows():
    # arXiv:2212.09849, section 3.1: merging linear models in closed form, here where each is its own site's optimum.
    source = np.random.default_rng(0)
    rows = [source.normal(size=(30, 6)) * np.linspace(0.5, 2, 6) for _ in range(3)]
    answers = [x @ source.normal(size=(6, 2)) + source.normal(size=(30, 2)) for x in rows]
    own = [np.linalg.lstsq(x, y, rcond=None)[0].T for x, y in zip(rows, answers, strict=True)]
    sent = [
        Update(f"s{k}", {"fc.weight": torch.from_numpy(w)}, 30, {"fc": torch.from_numpy(x.T @ x / 30)})
        for k, (x, w) in enumerate(zip(rows, own, strict=True))
    ]

    fused = fuse("regmean", sent, reference=sent[0].state, config=FuseConfig(regmean_shrink=1.0))

    pooled = np.linalg.lstsq(np.concatenate(rows), np.concatenate(answers), rcond=None)[0].T
    # Normal equations square a condition number of about 4.
    np.testing.assert_allclose(fused.state["fc.weight"].numpy(), pooled, rtol=1e-10)


def test_a_uniform_soup_of_linear_models_answers_as_their_ensemble():
    # arXiv:2203.05482, section 4: weights and logits averaged are the same where the model is linear in its weights.
    states = [{"w": torch.randn(3, 8, generator=torch.Generator().manual_seed(k)).double()} for k in range(4)]
    images = torch.randn(8, 20, generator=torch.Generator().manual_seed(9)).double()

    soup = fuse("uniform_soup", [Update(f"s{k}", s, 1) for k, s in enumerate(states)], reference=states[0])

    ensemble = torch.stack([state["w"] @ images for state in states]).mean(0)
    assert torch.allclose(soup.state["w"] @ images, ensemble, **ROUNDED)


@pytest.mark.parametrize("seed", range(20))
def test_a_greedy_soup_is_never_worse_than_the_best_single_model_on_the_images_it_is_chosen_on(seed):
    # arXiv:2203.05482, section 2: "no worse than the best individual model on the held-out validation set".
    source = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(2, generator=source).double()} for _ in range(6)]

    def loss(state):
        x, y = state["w"].tolist()
        return float(np.sin(5 * x) + np.cos(7 * y) + 0.1 * (x * x + y * y))

    fused = fuse(
        "greedy_soup",
        [Update(f"s{k}", state, 1) for k, state in enumerate(states)],
        reference=states[0],
        scorer=lambda name, state: {"clinic": Score(10, loss(state))},
    )

    assert loss(fused.state) <= min(loss(state) for state in states)
