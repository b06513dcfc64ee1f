"""An update that breaks the promise of equivariance is put aside; the card tells what the weights are worth."""

from __future__ import annotations

import copy
import json

import pytest
import timm
from field_net import FieldNet
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.adapters import attach
from popmi_core.config import parse_config
from popmi_core.equivariance.certificate import promise_of
from popmi_core.fusion import Fused
from popmi_core.groups import point_group
from popmi_core.models import PRESETS
from popmi_core.protocol import JSON_KEY, MODEL, REPORT, Assignment, Report, RunPlan
from server.card import model_card, write_card
from server.replies import Expected, layout_of
from server.results import Evaluation, RoundResult
from server.rounds.validate import validate
from server.wire import tensor_record


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def outcome(model, state):
    question = Message(RecordDict(), 7, "train")
    question.metadata.__dict__["_message_id"] = "m-a"
    told = Report(run="r", server_round=2, site="a", num_examples=5)
    records = {REPORT: ConfigRecord({JSON_KEY: told.model_dump_json()}), MODEL: tensor_record(state)}
    layout = layout_of(model.state_dict())
    expected = Expected("r", 2, layout, {"m-a": "a"}, promise=promise_of(model))
    result = validate([Message(RecordDict(records), reply_to=question)], expected)
    return result, result.outcomes[0]


def test_a_dense_update_on_the_subspace_is_usable():
    model = FieldNet(point_group("C4"), seed=0)

    result, told = outcome(model, FieldNet(point_group("C4"), seed=1).state_dict())

    assert told.outcome == "ok"
    assert len(result.updates) == 1


def test_a_dense_update_off_the_subspace_is_quarantined_with_the_reason():
    model = FieldNet(point_group("C4"), seed=0)
    state = copy.deepcopy(model.state_dict())
    state["2.weight"][3, 2, 0, 1] += 0.5

    result, told = outcome(model, state)

    assert not result.updates
    assert told.outcome == "quarantined"
    for part in ("site a, round 2", "'2.weight'", "C4-equivariant", "expected at most 0.0001"):
        assert part in told.reason


def test_a_tied_weight_sent_dense_is_quarantined_by_its_shape():
    plain = timm.create_model(PRESETS[1], num_classes=3)
    model = attach(plain, group="C4", merge_block=0)
    state = {**model.state_dict(), "backbone.patch_embed.proj.weight": plain.state_dict()["patch_embed.proj.weight"]}

    _, told = outcome(model, state)

    assert told.outcome == "quarantined"
    assert "'backbone.patch_embed.proj.weight' has shape" in told.reason


def card_of(equivariance):
    plan = RunPlan(
        run="trial", config=parse_config({}), folder="/runs/trial", data_name="skin", phantom=True,
        classes=("mel", "nv"), lineup=(Assignment(site="a", data=("/d",), state="/s"),),
    )  # fmt: skip
    done = RoundResult(
        server_round=1, seconds=1.0, seconds_combine=0.1, train=[], evaluate=[], matched=[],
        fused=Fused({}, {}, {}), note="", evaluation=Evaluation(), equivariance=equivariance,
    )  # fmt: skip
    return model_card(plan, done)


def test_the_card_tells_what_the_global_models_weights_are_worth(tmp_path):
    model = FieldNet(point_group("C4"), seed=0)
    promise = promise_of(model)
    assert promise is not None
    state = copy.deepcopy(model.state_dict())
    state["2.weight"][3, 2, 0, 1] += 0.5

    good, bad = card_of(promise.verdict(model.state_dict())), card_of(promise.verdict(state))

    assert good["equivariance"]["holds"] is True
    assert json.loads(json.dumps(good)) == good
    write_card(tmp_path / "good.md", "trial", good, "0" * 64)
    write_card(tmp_path / "bad.md", "trial", bad, "0" * 64)
    assert "weights kept as dense hold C4" in (tmp_path / "good.md").read_text()
    assert "DO NOT hold C4" in (tmp_path / "bad.md").read_text()
    assert "furthest off: 2.weight" in (tmp_path / "bad.md").read_text()


def test_cards_of_before_and_of_models_without_a_group_are_written_as_they_were(tmp_path):
    old = card_of(None)
    assert old["equivariance"] is None
    del old["equivariance"]

    write_card(tmp_path / "old.md", "trial", old, "0" * 64)

    assert "Equivariance" not in (tmp_path / "old.md").read_text()
