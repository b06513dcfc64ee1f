"""Match, fuse, evaluate: the steps of a round by themselves (server/rounds)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.config import FuseConfig, MatchConfig, ModelConfig
from popmi_core.fusion import Update
from popmi_core.matching import describe_model
from popmi_core.metrics import summarise_scores
from popmi_core.models import build_model
from popmi_core.protocol import JSON_KEY, REPORT, SCORES_PREFIX, Report
from server.replies import Expected
from server.results import SiteOutcome, TrainedUpdate, Validated
from server.rounds.evaluate import collect
from server.rounds.fuse import fuse_updates, move_control
from server.rounds.match import match_updates

EXPECTED = Expected("r", 1, {}, {"m-a": "a", "m-b": "b"})


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), float(value))}


def nobody(site: str, reason: str) -> None:
    raise AssertionError(f"{site} was put aside: {reason}")


def judged(site: str, count: int = 60, *, split: str = "val", **report) -> tuple[Message, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(site) + ord(site[0]))
    target = np.arange(count) % 2
    scores = rng.dirichlet((1, 1), count)
    question = Message(RecordDict(), 7, "evaluate")
    question.metadata.__dict__["_message_id"] = f"m-{site}"
    told = Report(
        **{
            "run": "r",
            "server_round": 1,
            "site": site,
            "split_sizes": {split: count},
            "metrics": {f"{split}.nll": 0.5, f"{split}.auroc": None},
            **report,
        }
    )
    records = {REPORT: ConfigRecord({JSON_KEY: told.model_dump_json()})}
    if count:
        summary = summarise_scores(scores, target).to_arrays()
        records[SCORES_PREFIX + split] = ArrayRecord({name: Array(array) for name, array in summary.items()})
    return Message(RecordDict(records), reply_to=question), scores, target


def test_with_matching_off_the_updates_pass_as_they_are_and_say_so():
    updates = [TrainedUpdate("a", state(1), 5)]
    (matched,) = match_updates(updates, reference=state(0), symmetry=None, config=MatchConfig(), quarantine=nobody)
    assert matched.state is updates[0].state
    assert (matched.note, matched.gains) == ("matching is off", {})


def test_an_architecture_without_known_symmetry_is_left_as_it_is_and_says_so():
    updates = [TrainedUpdate("a", state(1), 5)]
    (matched,) = match_updates(
        updates, reference=state(0), symmetry=None, config=MatchConfig(method="opm"), quarantine=nobody
    )
    assert torch.equal(matched.state["w"], state(1)["w"])
    assert matched.note
    fused = fuse_updates(
        [Update("a", state(1), 5), Update("b", state(3), 5)],
        reference=state(0),
        symmetry=None,
        config=FuseConfig(rule="circuit"),
    )
    assert fused.state["w"].tolist() == [2, 2]
    assert "plain average" in fused.notes["all"]


def test_the_average_is_weighted_by_images():
    updates = [Update("b", state(4), 3), Update("a", state(0), 1)]
    fused = fuse_updates(updates, reference=state(0), symmetry=None, config=FuseConfig())
    assert fused.state["w"].tolist() == [3, 3]
    assert fused.weights == {"a": 0.25, "b": 0.75}


def test_the_server_s_control_variate_moves_by_the_share_of_the_sites_that_answered():
    # SCAFFOLD, algorithm 1, line 17: c + |S| / N * mean over S of the changes; S = 2 of N = 4.
    moved = move_control(state(1), [state(2), state(6)], num_sites=4)
    assert moved["w"].tolist() == [1 + 2 / 4 * 4] * 2
    assert move_control({}, [state(2)], num_sites=2)["w"].tolist() == [1, 1]
    assert moved["w"].dtype == torch.float32


def test_evaluation_pools_all_sites_and_keeps_each_site_s_own_figures():
    (first, scores_a, target_a), (second, scores_b, target_b) = judged("a"), judged("b")
    evaluation, outcomes = collect([second, first], EXPECTED, ("val",), num_classes=2)
    assert [(item.site, item.outcome) for item in outcomes] == [("a", "ok"), ("b", "ok")]
    assert evaluation.sites["a"]["val"] == {"auroc": None, "nll": 0.5}
    scores, target = np.concatenate([scores_a, scores_b]), np.concatenate([target_a, target_b])
    accuracy = (scores.argmax(1) == target).mean()
    assert evaluation.pooled["val"].accuracy.lower <= accuracy <= evaluation.pooled["val"].accuracy.upper
    assert evaluation.pooled["val"].num_examples == 120


def test_a_site_without_images_of_a_split_sends_no_scores_and_is_no_fault():
    evaluation, outcomes = collect([judged("a")[0], judged("b", 0)[0]], EXPECTED, ("val",), num_classes=2)
    assert {item.outcome for item in outcomes} == {"ok"}
    assert evaluation.pooled["val"].num_examples == 60


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        (lambda m: m.content.array_records.pop("scores.val"), "quarantined", "no scores of split val"),
        (
            lambda m: m.content.array_records["scores.val"].update(
                {"runs": Array(dtype="int64", shape=(1, 7), stype="numpy.ndarray", data=b"PK\x03\x04")}
            ),
            "quarantined",
            "cannot be decoded",
        ),
        (
            lambda m: m.content.array_records["scores.val"].update({"header": Array(np.zeros(7))}),
            "quarantined",
            "score summary 'header' is float64",
        ),
    ],
    ids=["missing", "damaged", "wrong type"],
)
def test_scores_that_cannot_be_used_put_their_site_aside(change, outcome, reason):
    message = judged("a")[0]
    change(message)
    evaluation, outcomes = collect([message, judged("b")[0]], EXPECTED, ("val",), num_classes=2)
    assert outcomes[0].outcome == outcome
    assert reason in outcomes[0].reason
    assert (list(evaluation.sites), outcomes[1].outcome) == (["b"], "ok")


def test_a_site_that_says_it_cannot_evaluate_is_failed_with_its_reason():
    _, outcomes = collect([judged("a", error="ModelError: x")[0]], EXPECTED, ("val",), num_classes=2)
    assert [(item.outcome, item.reason) for item in outcomes] == [
        ("failed", "ModelError: x"),
        ("unreachable", "no reply before the deadline"),
    ]


def test_updates_matched_at_their_site_pass_as_they_are_with_what_the_site_told():
    report = Report(
        run="r", server_round=1, site="a", gains={"mlp": 0.5, "heads": None}, identity={"mlp": False}, match_note="far"
    )
    update = TrainedUpdate("a", state(1), 5, report=report)
    config = MatchConfig(method="opm", where="site")
    (matched,) = match_updates([update], reference=state(0), symmetry=None, config=config, quarantine=nobody)
    assert matched.state is update.state
    assert matched.gains["mlp"] == 0.5
    assert np.isnan(matched.gains["heads"])
    assert matched.note == "matched at the site; far"


def test_an_update_is_asked_for_only_when_the_one_before_is_matched():
    asked = []

    def arriving():
        for site in "ab":
            asked.append(site)
            yield TrainedUpdate(site, state(1), 5)

    matching = match_updates(arriving(), reference=state(0), symmetry=None, config=MatchConfig(), quarantine=nobody)
    next(matching)
    assert asked == ["a"]


def test_a_site_whose_scores_overflow_is_put_aside_and_the_others_are_matched(monkeypatch):
    # As of models above 20 million numbers, which are compared in float32.
    monkeypatch.setattr("popmi_core.matching.opm._LARGE", 0)
    models = {
        site: build_model(ModelConfig(backbone="popmi_vit_micro"), 3, seed=seed) for seed, site in enumerate("abc")
    }
    states = {site: dict(model.state_dict()) for site, model in models.items()}
    states["b"]["blocks.0.norm1.weight"] = torch.full_like(states["b"]["blocks.0.norm1.weight"], 3e38)
    states["b"]["blocks.0.attn.qkv.weight"] = torch.ones_like(states["b"]["blocks.0.attn.qkv.weight"]) * 2
    found = Validated(outcomes=[SiteOutcome(site, "ok", bytes_up=7) for site in "abc"])

    matched = match_updates(
        [TrainedUpdate(site, state, 5) for site, state in states.items()],
        reference=states["a"],
        symmetry=describe_model(models["a"]),
        config=MatchConfig(method="opm"),
        quarantine=found.quarantine,
    )

    assert [update.site for update in matched] == ["a", "c"]
    assert [(item.outcome, item.bytes_up) for item in found.outcomes] == [("ok", 7), ("quarantined", 7), ("ok", 7)]
    assert found.outcomes[1].reason.startswith("site b, with norms folded in: 'blocks.0.attn.qkv.weight' holds NaN or")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 60),
        ({"split_sizes": {"val": 61}}, 61),
        ({"metrics": {"val.num_examples": 1e12}}, 10**12),
        ({"metrics": {"val.num_examples": -1.0}}, -1),
    ],
    ids=["summary", "split size", "figure", "below zero"],
)
def test_figures_over_more_images_than_the_site_has_weigh_nothing(change, count):
    has = 59 if count == 60 else 60
    expected = replace(EXPECTED, asked={"m-a": "a"}, enrolled={"a": {"train": 7, "val": has}})
    evaluation, (told,) = collect([judged("a", **change)[0]], expected, ("val",), num_classes=2)
    assert (told.outcome, evaluation.sites, evaluation.pooled) == ("quarantined", {}, {})
    assert f"num_examples is {count}, expected 0 to {has}, what the site told of its val images" in told.reason
