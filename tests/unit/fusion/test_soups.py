"""Soups and the best single model: what is kept, in which order, and what is said about it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.fusion import Score, Update, fuse, needs
from popmi_core.fusion.score import Scoreboard

REFERENCE = {"w": torch.zeros(2, dtype=torch.float64)}


def site(name, *values, count=1):
    return Update(name, {"w": torch.tensor(values, dtype=torch.float64)}, count)


def bowl(name, state):
    """One hospital whose loss is the squared distance to (1, 1)."""
    return {"clinic": Score(40, float((state["w"] - 1).square().sum()), accuracy=float(state["w"][0] > 0))}


def test_a_uniform_soup_counts_every_model_the_same():
    fused = fuse("uniform_soup", [site("a", 1, 0, count=900), site("b", 0, 1, count=1)], reference=REFERENCE)

    assert fused.state["w"].tolist() == [0.5, 0.5]
    assert fused.weights == {"a": 0.5, "b": 0.5}


def test_the_greedy_soup_keeps_what_helps_in_the_order_of_quality():
    updates = [site("bad", -5, -5), site("best", 1.5, 1), site("second", 0.4, 1)]

    fused = fuse("greedy_soup", updates, reference=REFERENCE, scorer=bowl)

    assert fused.state["w"].tolist() == [0.95, 1]
    assert fused.weights == {"bad": 0, "best": 0.5, "second": 0.5}
    assert fused.chosen == "best+second"
    assert list(fused.scores) == ["bad", "best", "second", "best+second", "best+second+bad"]
    assert fused.scores["best+second"] == {"clinic": pytest.approx(0.0025)}
    assert fused.notes["all"] == "soup of 2 of 3 models: best, second"
    assert fused.notes["bad"].startswith("left out: the soup would be worse by ")


def test_a_site_that_is_called_like_a_trial_keeps_its_own_scores():
    updates = [site("a", 1.5, 1), site("b", 0.4, 1), site("a+b", -5, -5)]

    fused = fuse("greedy_soup", updates, reference=REFERENCE, scorer=bowl)

    assert fused.chosen == "a+b (2)"
    assert list(fused.scores) == ["a", "a+b", "b", "a+b (2)", "a+b+a+b"]
    assert fused.scores["a+b"] == {"clinic": 72}
    assert fused.scores["a+b (2)"] == {"clinic": pytest.approx(0.0025)}


def test_the_greedy_soup_is_the_papers_recipe_step_by_step():
    source = np.random.default_rng(0)
    values = {f"s{k}": source.normal(1, 0.8, 2) for k in range(6)}

    fused = fuse("greedy_soup", [site(n, *v) for n, v in values.items()], reference=REFERENCE, scorer=bowl)

    loss = lambda w: float(np.square(np.asarray(w) - 1).sum())  # noqa: E731
    kept = []
    for name in sorted(values, key=lambda n: loss(values[n])):
        if not kept or loss(np.mean([values[n] for n in [*kept, name]], 0)) <= loss(
            np.mean([values[n] for n in kept], 0)
        ):
            kept.append(name)
    assert fused.chosen == "+".join(kept)
    # Sums of two to six float64 numbers.
    np.testing.assert_allclose(fused.state["w"].numpy(), np.mean([values[n] for n in kept], 0), rtol=1e-14)


def test_models_of_different_basins_leave_one_and_it_is_said():
    def ridge(name, state):
        """Good at (1, 0) and (0, 1), bad between them: two permuted copies of one net."""
        return {"clinic": Score(10, float(min((state["w"] - c).abs().sum() for c in torch.eye(2))))}

    fused = fuse("greedy_soup", [site("a", 1, 0), site("b", 0, 1)], reference=REFERENCE, scorer=ridge)

    assert fused.weights == {"a": 1, "b": 0}
    assert fused.notes["all"].startswith("kept one model, a: no other improves it. Models of different basins")


def test_a_model_that_changes_nothing_is_kept_and_ties_go_by_name():
    fused = fuse("greedy_soup", [site("b", 2, 1), site("a", 2, 1)], reference=REFERENCE, scorer=bowl)

    assert fused.chosen == "a+b"


def test_accuracy_can_be_the_measure():
    updates = [site("a", 0.1, 9), site("b", -1, 1)]

    by_accuracy = fuse("greedy_soup", updates, reference=REFERENCE, scorer=bowl, measure="accuracy")

    assert by_accuracy.chosen == "a"
    assert fuse("greedy_soup", updates, reference=REFERENCE, scorer=bowl).chosen == "b"


def test_accuracy_that_no_site_tells_is_refused():
    with pytest.raises(ConfigError, match="measure is 'accuracy' but a site scored without one"):
        fuse(
            "greedy_soup",
            [site("a", 1, 1), site("b", 0, 0)],
            reference=REFERENCE,
            scorer=lambda name, state: {"clinic": Score(1, 0.0)},
            measure="accuracy",
        )


def test_the_best_single_model_is_best_on_all_images_together():
    def scorer(name, state):
        # b is better at the large clinic, a at the small one.
        return {"large": Score(90, 1.0 if name == "a" else 0.5), "small": Score(10, 0.2 if name == "a" else 0.9)}

    fused = fuse("best_single", [site("a", 1, 2), site("b", 3, 4)], reference=REFERENCE, scorer=scorer)

    assert fused.chosen == "b"
    assert fused.state["w"].tolist() == [3, 4]
    assert fused.weights == {"a": 0, "b": 1}
    assert fused.regret == pytest.approx(0.7)
    assert fused.scores == {"a": {"large": 1, "small": 0.2}, "b": {"large": 0.5, "small": 0.9}}


@pytest.mark.parametrize("rule", ["greedy_soup", "best_single"])
def test_a_lone_model_is_not_scored(rule):
    def never(name, state):
        raise AssertionError(name)

    assert fuse(rule, [site("a", 1, 2)], reference=REFERENCE, scorer=never).chosen == "a"


@pytest.mark.parametrize("rule", ["greedy_soup", "best_single"])
def test_a_rule_that_chooses_says_that_it_needs_a_scorer(rule):
    assert needs(rule).scorer
    with pytest.raises(ConfigError, match=f"rule {rule} chooses by validation loss but got no scorer"):
        fuse(rule, [site("a", 1, 2)], reference=REFERENCE)


def test_a_model_whose_loss_is_no_number_never_wins():
    def scorer(name, state):
        return {"clinic": Score(5, math.nan if name == "a" else 3.0)}

    assert fuse("best_single", [site("a", 1, 1), site("b", 0, 0)], reference=REFERENCE, scorer=scorer).chosen == "b"


def test_candidates_are_compared_on_the_sites_that_scored_both():
    answers = iter([{"x": Score(1, 1.0), "y": Score(9, 0.0)}, {"x": Score(1, 0.9)}])

    fused = fuse(
        "best_single", [site("a", 1, 1), site("b", 0, 0)], reference=REFERENCE, scorer=lambda *_: next(answers)
    )

    # y fell silent: on x alone, b is better.
    assert fused.chosen == "b"


def test_candidates_without_a_common_site_are_refused():
    answers = iter([{"x": Score(1, 1.0)}, {"y": Score(1, 0.9)}])

    with pytest.raises(UpdateError, match="rule best_single: no site scored all of a, b, expected one"):
        fuse("best_single", [site("a", 1, 1), site("b", 0, 0)], reference=REFERENCE, scorer=lambda *_: next(answers))


def test_scores_on_no_image_are_refused():
    with pytest.raises(UpdateError, match="no site scored candidate 'a' on a validation image"):
        fuse(
            "best_single",
            [site("a", 1, 1), site("b", 0, 0)],
            reference=REFERENCE,
            scorer=lambda *_: {"clinic": Score(0, 0.0)},
        )


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(UpdateError, match="a site scored on -1 images, expected a count"):
        Score(-1, 0.0)


def test_a_board_without_a_scorer_is_refused():
    with pytest.raises(ConfigError, match="rule best_single chooses by validation loss but got no scorer"):
        Scoreboard(None, rule="best_single")


def test_all_infinite_losses_regret_nothing():
    board = Scoreboard(lambda *_: {"clinic": Score(1, math.inf)}, rule="best_single")
    board.add("a", REFERENCE)

    assert board.regret("a") == 0


def test_the_soup_does_not_change_its_ingredients():
    updates = [site("a", 1.5, 1), site("b", 0.4, 1)]
    before = [replace(u, state={"w": u.state["w"].clone()}) for u in updates]

    fuse("greedy_soup", updates, reference=REFERENCE, scorer=bowl).state["w"].zero_()

    assert all(torch.equal(u.state["w"], b.state["w"]) for u, b in zip(updates, before, strict=True))
