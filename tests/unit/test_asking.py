"""What a run asks its sites, as far as its description alone decides it; whole rounds show it, too."""

from __future__ import annotations

import pytest

from popmi_core.asking import EVALUATING, JOINING, JUDGING, MEASURING, TRAINING, Asks, common_rules
from popmi_core.config import RunConfig
from popmi_core.measure import TurningAsk
from popmi_core.protocol import Instruction


def asks(names=("stem.bn.running_mean", "head.weight"), **described) -> Asks:
    return Asks.of(RunConfig.model_validate({"strategy": "fedavg", **described}), names)


def test_a_plain_run_asks_three_questions_and_for_nothing_more():
    assert asks().questions == (JOINING, TRAINING, EVALUATING)
    assert asks().parts == ("turned", "trained_on")
    assert asks(measure={"turning": "never", "train_figures": "never"}).parts == ()


@pytest.mark.parametrize("rule", ["best_single", "greedy_soup", "opm_greedy_soup"])
def test_a_rule_that_chooses_has_candidates_judged(rule):
    assert asks(fuse={"rule": rule}).questions == (JOINING, TRAINING, JUDGING, EVALUATING)


def test_a_gate_has_candidates_judged_whatever_the_rule():
    assert asks(fuse={"gate": ["average"]}).judged


def test_norms_are_measured_only_where_the_model_has_such_layers():
    assert asks(fuse={"repair": True}).questions == (JOINING, TRAINING, MEASURING, EVALUATING)
    assert asks(("head.weight",), fuse={"repair": True}).questions == (JOINING, TRAINING, EVALUATING)


@pytest.mark.parametrize("strategy", ["local", "ensemble"])
def test_where_nothing_is_fused_nothing_is_judged_measured_or_repaired(strategy):
    rule = "ensemble" if strategy == "ensemble" else "regmean"
    asked = asks(strategy=strategy, fuse={"rule": rule, "gate": ["regmean"], "repair": True})
    assert common_rules(asked.config) == ()
    assert (asked.questions, asked.parts) == ((JOINING, TRAINING, EVALUATING), ("turned", "trained_on"))


def test_a_part_for_every_option():
    asked = asks(
        local={"objective": "control_variates"},
        match={"method": "opm", "where": "site"},
        fuse={"gate": ["regmean", "git_rebasin_activations"], "repair": True},
        personal={"class_prior": "own"},
        privacy={"target_epsilon": 4},
    )
    assert asked.parts == (
        "class_counts", "epsilon", "control", "gram", "activations", "matching", "judged", "norms", "turned",
    )  # fmt: skip


def test_an_instruction_is_the_runs_own_with_what_the_question_adds():
    asked = asks(match={"method": "opm", "where": "site", "num_images": 40}, fuse={"rule": "regmean"}, rounds=7, seed=3)
    told = asked.instruction(run="r", server_round=2, classes=("mel", "nv"), nonce="n", **asked.training())
    assert isinstance(told, Instruction)
    assert (told.rounds, told.seed, told.nonce, told.num_images) == (7, 3, "n", 40)
    assert (told.match, told.statistics) == (asked.config.match, ("gram",))
    assert asked.joining() == {"count_classes": False}
    assert (asked.splits(final=False), asked.splits(final=True)) == (("val",), ("val", "test", "train"))


def test_training_images_are_never_judged_under_a_privacy_budget():
    assert asks(privacy={"target_epsilon": 4}).splits(final=True) == ("val", "test")
    assert asks(measure={"train_figures": "never"}).splits(final=True) == ("val", "test")


@pytest.mark.parametrize(("turning", "asked"), [("never", (0, 0)), ("last", (0, 1)), ("every", (1, 1))])
def test_images_are_turned_in_the_rounds_that_the_description_names(turning, asked):
    known = asks(measure={"turning": turning, "angles": 8, "turned_images": 50, "lee_images": 6})
    told = [known.evaluating(final=final)["turning"] for final in (False, True)]
    assert tuple(int(one is not None) for one in told) == asked
    assert all(one == TurningAsk(angles=8, images=50, lee_images=6) for one in told if one is not None)


def test_a_site_of_an_earlier_version_is_sent_no_word_it_does_not_know():
    told = asks().instruction(run="r", server_round=1, classes=("mel", "nv"))
    assert "turning" not in told.model_dump_json()
    turned = asks().instruction(run="r", server_round=1, classes=("mel", "nv"), **asks().evaluating(final=True))
    assert Instruction.model_validate_json(turned.model_dump_json()) == turned
