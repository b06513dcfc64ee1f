"""What leaves a hospital when something goes wrong: never the text of a foreign error."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from held import Watched, no_search_for_garbage

from client.receive import read_tensors
from client.reply import array_record, finite_or_none, guarded, is_packed, packed, read_instruction, reply, unpacked
from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.errors import DataError, PrivacyError, UpdateError
from popmi_core.protocol import INSTRUCTION, JSON_KEY, MAX_REASON, REPORT, Instruction, Report

INSTRUCTED = Instruction(
    run="r",
    server_round=3,
    rounds=4,
    seed=0,
    classes=("a", "b"),
    model=ModelConfig(),
    local=LocalConfig(),
    phantom_images=40,
)


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def answered(handler, **node) -> Report:
    content = RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: INSTRUCTED.model_dump_json()})})
    message = Message(content, 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={})
    answer = guarded(handler)(message, context)
    return Report.model_validate_json(answer.content.config_records[REPORT][JSON_KEY])


def failing(error: BaseException):
    def handler(message, context):
        raise error

    return handler


def test_a_good_answer_passes_untouched():
    def handler(message, context):
        return reply(message, Report(run="r", server_round=3, site="a", num_examples=5))

    assert answered(handler, site="a", data="x").num_examples == 5


def test_our_own_errors_are_told_in_full():
    report = answered(failing(DataError("site a: 3 labels have no class.")), site="a", data="x")
    assert report.error == "DataError: site a: 3 labels have no class."
    assert (report.run, report.server_round, report.site, report.stopped) == ("r", 3, "a", False)


@pytest.mark.parametrize(
    "place", ["/data/Meier", "/srv/Meier/words.csv", "/home/Meier/state/personal-003.safetensors", "/data/Meier/a.dcm"]
)
def test_no_place_of_the_site_leaves_even_in_our_own_errors(place):
    node = {"site": "a", "data": "/data/Meier#labels=/srv/Meier/words.csv", "state": "/home/Meier/state"}
    report = answered(failing(DataError(f"cannot write {place}: no room")), **node)
    assert "Meier" not in report.error
    assert report.error.startswith("DataError: cannot write (a place at this site)")
    assert report.error.endswith(": no room")


def test_a_broken_promise_stops_the_site():
    assert answered(failing(PrivacyError("budget spent")), site="a", data="x").stopped


def test_of_a_foreign_error_only_type_and_place_are_told(caplog):
    with caplog.at_level(logging.ERROR, logger="popmi.site"):
        report = answered(failing(ValueError("/data/Miller_Anna_1950.png is broken")), site="a", data="x")
    assert report.error.startswith("ValueError at test_reply.py:")
    assert "in handler" in report.error
    assert "Miller" not in report.error


def test_a_node_that_does_not_know_its_name_is_told_by_its_number():
    assert answered(failing(DataError("x"))).site == "node 7"


def test_ctrl_c_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        answered(failing(KeyboardInterrupt()), site="a", data="x")


def test_undefined_figures_become_none():
    assert finite_or_none({"a": float("nan"), "b": float("inf"), "c": 0.5}) == {"a": None, "b": None, "c": 0.5}


def test_a_lone_number_stays_one():
    record = array_record({"count": np.array(3.0), "turned": np.arange(6.0).reshape(2, 3).T})
    assert record["count"].numpy().shape == ()
    assert record["turned"].numpy().tolist() == [[0, 3], [1, 4], [2, 5]]


def asked_about(model: RecordDict) -> Message:
    content = RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: INSTRUCTED.model_dump_json()}), **model})
    message = Message(content, 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def sends_back(message, context):
    report = Report(run="r", server_round=3, site="a", num_examples=5)
    return reply(message, report, {"model": message.content["model"], "grams": array_record({"g": np.eye(2)})})


CONTEXT = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
PLAIN = RecordDict({"model": array_record({"b": np.arange(3), "a": np.ones((2, 2), np.float32)})})


def test_who_is_asked_packed_answers_packed():
    answer = guarded(sends_back)(asked_about(packed(PLAIN)), CONTEXT)
    assert is_packed(answer)
    assert {name: list(record) for name, record in answer.content.array_records.items()} == {
        "model": ["safetensors"],
        "grams": ["safetensors"],
    }
    model = unpacked(answer.content)["model"]
    assert list(model) == ["b", "a"]
    assert model["a"].numpy().tolist() == [[1, 1], [1, 1]]


def test_who_is_asked_plainly_answers_plainly():
    answer = guarded(sends_back)(asked_about(PLAIN), CONTEXT)
    assert not is_packed(answer)
    assert list(answer.content["model"]) == ["b", "a"]


@pytest.mark.parametrize("asked", [packed(PLAIN), PLAIN], ids=["packed", "plain"])
def test_question_and_answer_go_with_their_last_holder_and_not_when_garbage_is_looked_for(asked):
    message = asked_about(RecordDict({"model": ArrayRecord(dict(asked["model"]))}))
    came = Watched(message.content)
    with no_search_for_garbage():
        answer = guarded(sends_back)(message, CONTEXT)
        opened, sent = Watched(message.content), Watched(answer.content)
        assert read_tensors(message, "model")
        del message, answer
        assert (came.held(), opened.held(), sent.held()) == ([], [], [])


def test_a_message_without_an_instruction_is_refused():
    with pytest.raises(UpdateError, match=r"holds no instruction\. Check that it runs the same POPMI version"):
        read_instruction(Message(RecordDict({INSTRUCTION: array_record({"json": np.eye(2)})}), 7, "train"))


def test_a_damaged_question_is_answered_with_what_is_wrong():
    block = Array(dtype="uint8", shape=(3,), stype="safetensors", data=b"zip")
    answer = guarded(sends_back)(asked_about(RecordDict({"model": ArrayRecord({"safetensors": block})})), CONTEXT)
    report = Report.model_validate_json(answer.content.config_records[REPORT][JSON_KEY])
    assert report.error.startswith("UpdateError: 3 bytes cannot be decoded")


def test_an_error_of_any_length_is_cut_to_what_the_server_takes():
    report = answered(failing(DataError("x" * 10 * MAX_REASON)), site="a", data="x")
    assert len(report.error) == MAX_REASON
    assert report.error.startswith("DataError: xxx")
