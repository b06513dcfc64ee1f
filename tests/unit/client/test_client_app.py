"""One hospital's app by itself: join, train, evaluate, and what a reply contains."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from held import Watched, no_search_for_garbage

from client.app import app
from client.load import read_data
from client.receive import receive_model
from client.reply import packed, tensor_record
from popmi_core import __version__
from popmi_core.config import LocalConfig, ModelConfig, PrivacyConfig
from popmi_core.data import DERMOSCOPY_CLASSES, SkippedRow
from popmi_core.errors import ModelError, UpdateError
from popmi_core.limits import MIN_CELL
from popmi_core.measure import TurningAsk
from popmi_core.models import build_model, exchanged_state
from popmi_core.protocol import CONTROL_CHANGE, INSTRUCTION, JSON_KEY, MODEL, REPORT, Instruction, Report

SMALL = ModelConfig(backbone="popmi_vit_micro", image_size=16)


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def instruction(**changes) -> Instruction:
    described = {
        "run": "r",
        "server_round": 1,
        "rounds": 2,
        "seed": 0,
        "classes": DERMOSCOPY_CLASSES,
        "model": SMALL,
        "local": LocalConfig(batch_size=16),
        "phantom_images": 60,
        "splits": ("val", "test"),
    }
    return Instruction(**{**described, **changes})


def ask(kind: str, told: Instruction, arrays: dict | None = None) -> Message:
    message = Message(
        RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: told.model_dump_json()}), **(arrays or {})}), 7, kind
    )
    message.metadata.__dict__["_message_id"] = "m"
    return message


def start() -> dict[str, torch.Tensor]:
    return exchanged_state(build_model(SMALL, len(DERMOSCOPY_CLASSES), seed=0))


def answered(kind: str, state_folder, told: Instruction | None = None, **arrays) -> tuple[Message, Report]:
    told = told or instruction()
    config = {"site": "phantom_slide", "data": "phantom:phantom_slide", "state": str(state_folder)}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    reply = app(ask(kind, told, arrays or {MODEL: tensor_record(start())}), context)
    return reply, Report.model_validate_json(reply.content.config_records[REPORT][JSON_KEY])


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_question_s_model_is_not_held_once_it_is_answered(tmp_path, kind):
    config = {"site": "phantom_slide", "data": "phantom:phantom_slide", "state": str(tmp_path)}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    message = ask(kind, instruction(), {MODEL: tensor_record(start())})
    message.content = packed(message.content)
    came = Watched(message.content)
    with no_search_for_garbage():
        answer = app(message, context)
        opened, sent = Watched(message.content), Watched(answer.content)
        del message, answer
        assert (came.held(), opened.held(), sent.held()) == ([], [], [])


def test_joining_tells_how_many_images_there_are_and_that_they_are_phantoms(tmp_path):
    reply, report = answered("query", tmp_path)
    assert report.error is None
    assert sum(report.split_sizes.values()) == 60
    assert report.phantom
    assert not reply.content.array_records


@pytest.mark.parametrize(("rows", "told"), [(0, 0), (4, 0), (5, 5)])
def test_few_rows_that_were_left_out_are_told_as_none(tmp_path, monkeypatch, rows, told):
    skipped = tuple(SkippedRow(row, "the label map excludes this label") for row in range(rows))
    monkeypatch.setattr("client.app.read_data", lambda *given: replace(read_data(*given), skipped=skipped))
    _, report = answered("query", tmp_path)
    assert (report.error, report.skipped_rows) == (None, told)


def test_training_sends_the_whole_model_back_and_the_same_twice(tmp_path):
    (reply, report), (again, _) = (answered("train", tmp_path / name) for name in "ab")
    sent = {name: array.numpy() for name, array in reply.content.array_records[MODEL].items()}
    assert sent.keys() == start().keys()
    assert report.num_examples > 0
    assert report.metrics.keys() == {"train.loss"}
    assert any((sent[name] != value.numpy()).any() for name, value in start().items())
    assert all((again.content.array_records[MODEL][name].numpy() == value).all() for name, value in sent.items())
    assert CONTROL_CHANGE not in reply.content.array_records


def test_control_variates_leave_as_changes_and_stay_as_files(tmp_path):
    told = instruction(local=LocalConfig(batch_size=16, objective="control_variates"))
    reply, _ = answered("train", tmp_path, told)
    assert reply.content.array_records[CONTROL_CHANGE].keys() <= start().keys()
    assert [path.name[:12] for path in tmp_path.glob("control-*")] == ["control-001-"]


def test_evaluation_sends_figures_and_counts_but_no_list_as_long_as_the_patients(tmp_path):
    reply, report = answered("evaluate", tmp_path)
    assert set(report.split_sizes) == {"val", "test"}
    assert {name.partition(".")[0] for name in report.metrics} == {"val", "test"}
    # Everything that could carry scores is counts; nothing else leaves but the report's named figures.
    for record in reply.content.array_records.values():
        assert all(array.numpy().dtype == np.int64 for array in record.values())
    fields = json.loads(reply.content.config_records[REPORT][JSON_KEY])
    assert not [name for name, value in fields.items() if isinstance(value, list) and value]
    assert all(value is None or isinstance(value, float) for value in report.metrics.values())


def test_joining_tells_the_version_and_numbers_by_class_with_small_ones_hidden(tmp_path):
    report = answered("query", tmp_path)[1]
    assert report.popmi == __version__
    assert report.class_table.keys() == {"train", "val", "test"}
    for split, counts in report.class_table.items():
        told = [count for count in counts if count is not None]
        assert len(counts) == len(DERMOSCOPY_CLASSES)
        assert all(count >= MIN_CELL for count in told)
        assert len(told) < len(counts)
        # What is hidden is not known from the sum either.
        assert report.split_sizes[split] - sum(told) >= MIN_CELL


def test_under_a_budget_training_images_are_not_counted_by_class_and_never_judged(tmp_path):
    private = instruction(privacy=PrivacyConfig(target_epsilon=5.0, target_delta=1e-3), splits=("val", "train"))
    assert answered("query", tmp_path, private)[1].class_table.keys() == {"val", "test"}
    report = answered("evaluate", tmp_path, private)[1]
    assert report.stopped
    assert "judging training images would send what it saw in this site's images without noise" in report.error


def test_validation_images_are_turned_only_where_that_is_asked(tmp_path):
    assert answered("evaluate", tmp_path)[1].turned is None
    asked = instruction(turning=TurningAsk(angles=6, images=6, lee_images=5))
    told = answered("evaluate", tmp_path, asked)[1].turned
    assert (told.num_images, told.lee_images, len(told.figures.flips)) == (6, 5, 6)
    assert told.layers


def test_a_message_without_a_model_and_one_with_another_model_are_refused(tmp_path):
    told = instruction()
    with pytest.raises(UpdateError, match="holds no model"):
        receive_model(ask("train", told), told)
    with pytest.raises(ModelError, match="state does not fit"):
        receive_model(ask("train", told, {MODEL: tensor_record({"w": torch.zeros(1)})}), told)
    _, report = answered("train", tmp_path, told, **{MODEL: tensor_record({"w": torch.zeros(1)})})
    assert "ModelError" in report.error


def test_a_budget_is_charged_and_told_and_later_runs_without_one_are_refused(tmp_path):
    private = instruction(privacy=PrivacyConfig(target_epsilon=5.0, target_delta=1e-3))
    _, report = answered("train", tmp_path, private)
    assert 0 < report.epsilon <= 5
    _, report = answered("train", tmp_path)
    assert report.stopped
    assert "the promise would be void" in report.error
