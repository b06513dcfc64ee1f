"""What a run asks its sites, as far as its description alone decides it; whole rounds show it, too."""

from __future__ import annotations

import pytest

from popmi_core.asking import EVALUATING, JOINING, JUDGING, MEASURING, TRAINING, Asks, common_rules
from popmi_core.config import RunConfig
from popmi_core.protocol import Instruction


def asks(names=("stem.bn.running_mean", "head.weight"), **described) -> Asks:
    return Asks.of(RunConfig.model_validate({"strategy": "fedavg", **described}), names)


def test_a_plain_run_asks_three_questions_and_for_nothing_more():
    assert asks().questions == (JOINING, TRAINING, EVALUATING)
    assert asks().parts == ()


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
    assert (asked.questions, asked.parts) == ((JOINING, TRAINING, EVALUATING), ())


def test_a_part_for_every_option():
    asked = asks(
        local={"objective": "control_variates"},
        match={"method": "opm", "where": "site"},
        fuse={"gate": ["regmean", "git_rebasin_activations"], "repair": True},
        personal={"class_prior": "own"},
        privacy={"target_epsilon": 4},
    )
    assert asked.parts == ("class_counts", "epsilon", "control", "gram", "activations", "matching", "judged", "norms")


def test_an_instruction_is_the_runs_own_with_what_the_question_adds():
    asked = asks(match={"method": "opm", "where": "site", "num_images": 40}, fuse={"rule": "regmean"}, rounds=7, seed=3)
    told = asked.instruction(run="r", server_round=2, classes=("mel", "nv"), nonce="n", **asked.training())
    assert isinstance(told, Instruction)
    assert (told.rounds, told.seed, told.nonce, told.num_images) == (7, 3, "n", 40)
    assert (told.match, told.statistics) == (asked.config.match, ("gram",))
    assert asked.joining() == {"count_classes": False}
    assert (asked.splits(final=False), asked.splits(final=True)) == (("val",), ("val", "test"))
