"""Asking the sites about candidates (server/desk.py, scorer.py, rounds/judge.py, rounds/repair.py)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scripted_grid import PromptGrid

from popmi_core.config import parse_config
from popmi_core.errors import RunError
from popmi_core.fusion import Fused
from popmi_core.limits import LimitsConfig
from popmi_core.protocol import INSTRUCTION, JSON_KEY, NORMS, REPORT, Assignment, Instruction, Report, RunPlan
from server.desk import Desk, split_layout
from server.exchange import Exchange
from server.replies import layout_of
from server.results import SiteOutcome
from server.roster import Roster
from server.rounds.fuse import fuse_updates
from server.scorer import SiteScorer

STATE = {
    "bn.weight": torch.ones(2),
    "bn.running_mean": torch.zeros(2),
    "bn.running_var": torch.ones(2),
}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Sites(PromptGrid):
    """A grid whose sites answer by a function of their name and what they are told."""

    def __init__(self, answer):
        super().__init__(lambda message: answer(*self.told(message)))

    def told(self, message):
        text = message.content.config_records[INSTRUCTION][JSON_KEY]
        return {1: "a", 2: "b"}[message.metadata.dst_node_id], Instruction.model_validate_json(str(text))

    @property
    def kinds(self):
        return [message.metadata.message_type for message in self.sent]


def opened(made: Desk, grid) -> Desk:
    made.open(Exchange(grid, timeout=0.3, limits=LimitsConfig()))
    return made


def desk(answer, config=None, **changes) -> Desk:
    plan = RunPlan(
        run="r",
        config=parse_config(config or {}),
        folder="f",
        data_name="skin",
        phantom=False,
        classes=("x", "y"),
        lineup=(Assignment(site="a", data=("d",), state="s"),),
    )
    layout, kept = split_layout(layout_of(STATE), STATE, changes.get("keep", ()))
    roster = Roster(nodes={"a": 1, "b": 2}, reports=changes.get("joined", {}))
    made = Desk(plan, roster, layout, kept)
    return opened(made, Sites(answer))


def answer(told: Instruction, site: str, arrays=None, **report) -> RecordDict:
    text = Report(run="r", server_round=told.server_round, site=site, nonce=told.nonce, **report).model_dump_json()
    return RecordDict({REPORT: ConfigRecord({JSON_KEY: text}), **(arrays or {})})


def judged(losses, **report):
    def reply(site, told):
        metrics = {"val.nll": losses[site], "val.accuracy": 0.5, "val.auroc": None, "val.num_examples": 8.0}
        return answer(told, site, num_examples=8, metrics=metrics, seconds=2.0, **report)

    return reply


def scorer(made: Desk, *, repair: bool = False) -> tuple[SiteScorer, list[str]]:
    warned: list[str] = []
    return SiteScorer(made, 3, repair=repair, warn=warned.append), warned


def test_every_site_s_loss_comes_back_under_its_name_and_is_kept_for_the_record():
    made = desk(judged({"a": 0.5, "b": 0.25}))
    ask, warned = scorer(made)
    found = ask("circuit", STATE)
    assert {site: (score.num_examples, score.loss, score.accuracy) for site, score in found.items()} == {
        "a": (8, 0.5, 0.5),
        "b": (8, 0.25, 0.5),
    }
    assert ask.judged["circuit"]["b"].loss == 0.25
    assert (ask.seconds, warned) == (4.0, [])
    assert set(made.post.grid.kinds) == {"evaluate.judge"}


def test_the_sites_are_told_the_candidate_s_name_and_round():
    seen = []

    def reply(site, told):
        seen.append((site, told.candidate, told.server_round))
        return judged({"a": 1.0, "b": 1.0})(site, told)

    scorer(desk(reply))[0]("opm/a", STATE)
    assert seen == [("a", "opm/a", 3), ("b", "opm/a", 3)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda told: None, "no answer"),
        (lambda told: answer(told, "b", error="ModelError: no"), "ModelError: no"),
        (lambda told: answer(told.model_copy(update={"server_round": 9}), "b"), "round 9; expected run r, round 3"),
    ],
    ids=["silent", "cannot", "another round"],
)
def test_a_site_that_cannot_judge_is_left_out_and_named(bad, said):
    ask, warned = scorer(desk(lambda site, told: judged({"a": 0.5})(site, told) if site == "a" else bad(told)))
    assert set(ask("average", STATE)) == {"a"}
    assert len(warned) == 1
    assert warned[0].startswith("b could not judge candidate average: ")
    assert said in warned[0]


def test_a_site_with_too_few_validation_images_has_no_say_and_is_no_fault():
    def reply(site, told):
        few = answer(told, site, num_examples=3, metrics={"val.num_examples": 3.0})
        return few if site == "b" else judged({"a": 0.5})(site, told)

    ask, warned = scorer(desk(reply))
    assert set(ask("average", STATE)) == {"a"}
    assert warned == []


def test_a_loss_that_is_no_number_never_wins():
    ask, _ = scorer(desk(judged({"a": None, "b": 0.5})))
    assert ask("average", STATE)["a"].loss == float("inf")


def test_what_judging_weighs_is_counted_once_with_the_evaluation():
    made = desk(judged({"a": 0.5, "b": 0.25}))
    ask, _ = scorer(made)
    ask("average", STATE)
    one = made.sent_bytes["a"]
    ask("circuit", STATE)
    made.sent_bytes = {"a": 10, "b": 10}
    (first, _) = made.with_bytes([SiteOutcome("a", "ok"), SiteOutcome("b", "ok")], aside=True)
    assert first.bytes_down == 10 + 2 * one
    assert made.with_bytes([SiteOutcome("a", "ok")], aside=True)[0].bytes_down == 10


def statistics(mean: float, **changes) -> dict[str, ArrayRecord]:
    arrays = {
        "bn.mean": np.full(2, mean),
        "bn.var": np.ones(2),
        "bn.count": np.array(100.0),
        **changes,
    }
    return {NORMS: ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items() if value is not None})}


def test_norm_statistics_of_the_sites_are_pooled_by_their_training_images():
    counts = {"a": 30, "b": 10}

    def reply(site, told):
        return answer(told, site, statistics(1.0 if site == "a" else 5.0), num_examples=counts[site])

    made = desk(reply)
    state = scorer(made, repair=True)[0].repaired(STATE)
    # 0.75 * 1 + 0.25 * 5, and 1 + 0.75 * 1 + 0.25 * 9 between the sites, times 200 / 199 for the unbiased variance.
    assert state["bn.running_mean"].tolist() == [2.0, 2.0]
    assert state["bn.running_var"].tolist() == pytest.approx([4.0 * 200 / 199] * 2, rel=1e-6)
    assert torch.equal(state["bn.weight"], STATE["bn.weight"])
    assert set(made.post.grid.kinds) == {"query.norms"}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "no statistics of the model's BatchNorm layers"),
        (statistics(0.0, **{"bn.var": None}), "no statistics of the model's BatchNorm layers"),
        (statistics(float("nan")), "'bn.mean' has shape"),
        (statistics(0.0, **{"bn.var": -np.ones(2)}), "no variance or count below 0"),
        (statistics(0.0, **{"bn.mean": np.zeros(3)}), r"'bn.mean' has shape \(3,\), expected \(2,\)"),
    ],
    ids=["none", "part", "NaN", "negative", "shape"],
)
def test_statistics_that_cannot_be_used_are_put_aside_with_their_site(arrays, said):
    def reply(site, told):
        return answer(told, site, statistics(2.0) if site == "a" else arrays, num_examples=10)

    ask, warned = scorer(desk(reply), repair=True)
    assert ask.repaired(STATE)["bn.running_mean"].tolist() == [2.0, 2.0]
    (line,) = warned
    assert line.startswith("b could not measure BatchNorm statistics: ")
    assert re.search(said, line)


def test_without_any_statistics_the_model_stays_as_it_is():
    ask, warned = scorer(desk(lambda site, told: answer(told, site, error="PrivacyError: no")), repair=True)
    assert ask.repaired(STATE)["bn.running_mean"].tolist() == [0.0, 0.0]
    assert len(warned) == 2


def test_a_candidate_is_judged_with_the_statistics_it_would_have():
    def reply(site, told):
        if told.candidate:
            return judged({"a": 0.5, "b": 0.5})(site, told)
        return answer(told, site, statistics(1.0), num_examples=10)

    made = desk(reply)
    scorer(made, repair=True)[0]("average", STATE)
    assert made.post.grid.kinds == ["query.norms"] * 2 + ["evaluate.judge"] * 2


def test_sites_cannot_be_asked_before_a_grid_is_open():
    made = desk(judged({}))
    made.post = None
    with pytest.raises(RunError, match="no grid is open"):
        made.exchange([])


def test_what_sites_keep_is_not_expected_of_them_and_stands_in_as_it_was():
    made = desk(judged({}), {"strategy": "fedavg", "personal": {"keep_local": ["running"]}}, keep=("running",))
    expected = made.expected(1)
    assert set(expected.layout) == {"bn.weight"}
    assert set(expected.kept) == {"bn.running_mean", "bn.running_var"}
    assert made.instruction(1).keep_local == ("running",)


def updates():
    from popmi_core.fusion import Update

    return [Update("a", {"w": torch.zeros(2)}, 1), Update("b", {"w": torch.ones(2)}, 1)]


def gated(answering) -> Fused:
    config = parse_config({"strategy": "fedavg", "fuse": {"rule": "median", "gate": ["uniform_soup"]}}).fuse
    ask, _ = scorer(desk(answering))
    return fuse_updates(updates(), reference={"w": torch.zeros(2)}, symmetry=None, config=config, scorer=ask)


def test_the_gate_takes_the_candidate_with_the_lowest_loss_and_tells_all():
    losses = {"average": (0.5, 0.5), "median": (0.2, 0.6), "uniform_soup": (0.9, 0.1)}

    def reply(site, told):
        return judged({"a": losses[told.candidate][0], "b": losses[told.candidate][1]})(site, told)

    fused = gated(reply)
    assert fused.chosen == "median"
    assert fused.scores["uniform_soup"] == {"a": 0.9, "b": 0.1}
    assert fused.regret == pytest.approx(0.5)


def test_a_gate_that_nobody_can_judge_at_leaves_the_plain_average():
    fused = gated(lambda site, told: answer(told, site, num_examples=2, metrics={"val.num_examples": 2.0}))
    assert fused.state["w"].tolist() == [0.5, 0.5]
    assert "no site could judge" in fused.notes["gate"]
    assert fused.chosen == ""


def test_a_killed_site_s_error_is_its_own_and_not_counted_as_weight():
    made = desk(judged({"a": 0.5, "b": 0.5}))
    sound = made.post.grid.answer
    made.post.grid.answer = lambda message: (
        Message(Error(1, "killed"), reply_to=message) if message.metadata.dst_node_id == 2 else sound(message)
    )
    ask, warned = scorer(made)
    assert set(ask("average", STATE)) == {"a"}
    assert "killed" in warned[0]


def joined(train=30, val=8):
    """Return what both sites told when they joined."""
    sizes = {"train": train, "val": val, "test": 0}
    return {
        site: Report(run="r", server_round=0, site=site, num_examples=train, split_sizes=sizes) for site in ("a", "b")
    }


def test_a_site_that_tells_more_validation_images_than_it_has_decides_nothing():
    def reply(site, told):
        many = 10_000_000 if site == "b" else 8
        return answer(told, site, num_examples=many, metrics={"val.nll": 0.5, "val.accuracy": 0.5})

    ask, warned = scorer(desk(reply, joined=joined()))
    assert set(ask("average", STATE)) == {"a"}
    (line,) = warned
    assert "num_examples is 10000000, expected 0 to 8, what the site told of its val images when it joined" in line


def test_a_loss_below_zero_wins_nothing():
    ask, warned = scorer(desk(judged({"a": 0.5, "b": -1e300})))
    assert set(ask("average", STATE)) == {"a"}
    assert "it tells a loss of -1e+300 nats, expected 0 or more" in warned[0]


def test_statistics_of_more_images_than_the_site_has_are_put_aside():
    def reply(site, told):
        return answer(told, site, statistics(2.0 if site == "a" else 9.0), num_examples=30 if site == "a" else 31)

    ask, warned = scorer(desk(reply, joined=joined()), repair=True)
    assert ask.repaired(STATE)["bn.running_mean"].tolist() == [2.0, 2.0]
    assert "num_examples is 31, expected 0 to 30, what the site told of its train images" in warned[0]


@pytest.mark.parametrize(
    "odd", [statistics(1e30), statistics(0.0, **{"bn.var": np.full(2, 1e30)})], ids=["mean", "var"]
)
def test_statistics_far_beyond_the_model_s_own_are_put_aside_with_norm_and_bound(odd):
    def reply(site, told):
        return answer(told, site, statistics(2.0) if site == "a" else odd, num_examples=10)

    ask, warned = scorer(desk(reply), repair=True)
    assert ask.repaired(STATE)["bn.running_mean"].tolist() == [2.0, 2.0]
    # The model's own: two means of 0 and two variances of 1, so a norm of the root of 2.
    assert re.search(r"have norm 1\.4\de\+\d+ \(means and deviations\), expected at most 141 ", warned[0])


def test_a_model_that_statistics_would_make_infinite_keeps_those_it_had():
    # Each within its bound; their spread around a common mean is not, in float32.
    limits = {"limits": {"max_change": 1e30}}

    def reply(site, told):
        return answer(told, site, statistics(1e20 if site == "a" else -1e20), num_examples=10)

    ask, warned = scorer(desk(reply, limits), repair=True)
    found = ask.repaired(STATE)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    assert warned == [
        "round 3: the statistics of a, b pooled give 'bn.running_var' NaN or infinity, expected finite values; the "
        "model keeps the statistics it had"
    ]
