"""The never-worse gate takes the best candidate on the sites' images, and says what it saw."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.fusion import Score, Update, fuse
from popmi_core.fusion.gate import never_worse

REFERENCE = {"w": torch.zeros(2, dtype=torch.float64)}


def site(name, *values, count=1):
    return Update(name, {"w": torch.tensor(values, dtype=torch.float64)}, count)


def near(x, y):
    """Two hospitals, each with its own best weights."""

    def score(name, state):
        return {
            "large": Score(30, float((state["w"] - x).square().sum())),
            "small": Score(10, float((state["w"] - y).square().sum())),
        }

    return score


UPDATES = [site("a", 0, 0), site("b", 0, 0), site("c", 3, 3, count=4)]


def test_the_best_candidate_is_taken_with_all_scores_and_the_regret_of_the_worst_site():
    fused = never_worse(["median", "uniform-soup"], UPDATES, reference=REFERENCE, scorer=near(0.0, 3.0))

    assert fused.chosen == "uniform_soup"
    assert fused.state["w"].tolist() == [1, 1]
    assert list(fused.scores) == ["average", "median", "uniform_soup"]
    assert fused.scores["median"] == {"large": 0, "small": 18}
    # The plain average (2, 2) has loss 2 at the small site.
    assert fused.scores["uniform_soup"] == {"large": 2, "small": 8}
    assert fused.regret == pytest.approx(6)
    assert fused.notes["gate.uniform_soup"] == "validation loss 3.5000 nats, taken"
    assert fused.notes["gate.median"] == "validation loss 4.5000 nats"
    assert fused.notes["gate.average"] == "validation loss 6.5000 nats"


def test_a_tie_goes_to_the_plain_average():
    fused = never_worse(["median"], [site("a", 1, 1), site("b", 3, 3)], reference=REFERENCE, scorer=near(0.0, 0.0))

    assert fused.chosen == "average"
    assert fused.regret == 0


@pytest.mark.parametrize(("lower_by", "chosen"), [(1e-8, "average"), (1e-4, "median")])
def test_a_loss_lower_by_no_more_than_rounding_is_a_tie(lower_by, chosen):
    def score(name, state):
        return {"a": Score(10, 1.0 - (lower_by if name == "median" else 0.0))}

    assert never_worse(["median"], UPDATES, reference=REFERENCE, scorer=score).chosen == chosen


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_the_gate_is_never_worse_than_the_plain_average(seed, count):
    source = torch.Generator().manual_seed(seed)
    updates = [Update(f"s{k}", {"w": torch.randn(2, generator=source).double()}, k + 1) for k in range(count)]
    scorer = near(*torch.randn(2, generator=source).tolist())

    def loss(state):
        return (30 * scorer("", state)["large"].loss + 10 * scorer("", state)["small"].loss) / 40

    gated = never_worse(["median", "greedy_soup", "krum", "best_single"], updates, reference=REFERENCE, scorer=scorer)

    assert loss(gated.state) <= loss(fuse("average", updates, reference=REFERENCE).state)


def test_a_rule_that_cannot_work_is_left_out_and_noted():
    fused = never_worse(["krum", "regmean"], UPDATES, reference=REFERENCE, scorer=near(3.0, 3.0))

    assert fused.chosen == "average"
    assert fused.notes["gate.krum"].startswith("left out: krum with faulty=1 got 3 updates, expected at least 5")
    assert fused.notes["gate.regmean"].startswith("left out: rule regmean needs every site's input Gram matrices")
    assert list(fused.scores) == ["average"]


def test_the_scorer_hears_which_rule_asks():
    asked = []

    def scorer(name, state):
        asked.append(name)
        return {"clinic": Score(1, float(state["w"].square().sum()))}

    never_worse(["greedy_soup"], UPDATES[1:], reference=REFERENCE, scorer=scorer)

    assert asked == ["average", "greedy_soup/b", "greedy_soup/c", "greedy_soup/b+c", "greedy_soup"]


def test_options_reach_their_rule():
    with pytest.raises(ConfigError, match="rule median has no option 'depth'"):
        never_worse(["median"], UPDATES, reference=REFERENCE, scorer=near(0.0, 0.0), options={"median": {"depth": 3}})


def test_a_model_that_overflows_everywhere_is_told_as_infinite():
    fused = never_worse(
        ["median"],
        UPDATES,
        reference=REFERENCE,
        scorer=lambda name, _: {"clinic": Score(1, float("nan") if name == "median" else 1.0)},
    )

    assert fused.notes["gate.median"] == "validation loss infinite"


def test_a_candidate_scored_by_strangers_only_is_left_out():
    fused = never_worse(["median"], UPDATES, reference=REFERENCE, scorer=lambda name, _: {name: Score(1, 0.0)})

    assert fused.notes["gate.median"].startswith("left out: rule gate: no site scored all of median, average")


def test_where_sites_drop_out_the_choice_still_beats_the_plain_average():
    """The trimmed mean beats the median at their one common site, but not the plain average at its own two."""
    losses = {
        "average": {"a": 3.0, "b": 1.0, "c": 1.0},
        "median": {"a": 2.0},
        "trimmed_mean": {"a": 1.0, "b": 9.0},
    }

    def scorer(name, state):
        return {site: Score(1, loss) for site, loss in losses[name].items()}

    fused = never_worse(["median", "trimmed_mean"], UPDATES, reference=REFERENCE, scorer=scorer)

    assert fused.chosen == "median"


def test_the_gate_needs_a_scorer():
    with pytest.raises(ConfigError, match="rule gate chooses by validation loss but got no scorer"):
        never_worse(["median"], UPDATES, reference=REFERENCE, scorer=None)


def test_without_a_plain_average_there_is_no_gate():
    with pytest.raises(UpdateError, match="no site sent an update"):
        never_worse(["median"], [], reference=REFERENCE, scorer=near(0.0, 0.0))
