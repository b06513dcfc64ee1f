"""Which updates come near the average (server/rounds/validate.py, replies.py, wire.py)."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.matching import Symmetry
from popmi_core.protocol import (
    ACTIVATIONS,
    CONTROL_CHANGE,
    GRAMS,
    INSTRUCTION,
    JSON_KEY,
    MODEL,
    REPORT,
    Instruction,
    Report,
)
from server.replies import Expected, layout_of, open_replies, payload_bytes
from server.rounds.validate import MAX_EXAMPLES, validate
from server.wire import ask, tensor_record

GLOBAL = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
ASKED = {"m-a": "a", "m-b": "b"}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def expected(**changes) -> Expected:
    return Expected("r", 2, layout_of(GLOBAL), {"m-a": "a"}, **changes)


def answer(records, *, to="m-a", **report) -> Message:
    question = Message(RecordDict(), 7, "train")
    question.metadata.__dict__["_message_id"] = to
    told = Report(**{"run": "r", "server_round": 2, "site": "a", "num_examples": 5, **report})
    return Message(RecordDict({REPORT: ConfigRecord({JSON_KEY: told.model_dump_json()}), **records}), reply_to=question)


def outcome(message, **changes):
    result = validate([message], expected(**changes))
    assert len(result.outcomes) == 1
    return result, result.outcomes[0]


def model_with(data: bytes) -> dict[str, ArrayRecord]:
    record = tensor_record(GLOBAL)
    record["b"] = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)
    return {MODEL: record}


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, b=np.zeros(3, np.float32))
    return file.getvalue()


def header_of(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_a_sound_update_is_usable_and_owns_its_memory():
    result, told = outcome(answer({MODEL: tensor_record(GLOBAL)}))
    assert (told.outcome, told.site) == ("ok", "a")
    assert result.updates[0].num_examples == 5
    result.updates[0].state["w"].add_(1)
    assert GLOBAL["w"].sum() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"PK\x03\x04 a zip that is none",
        archive(),
        header_of((2**50,)),
        header_of((3,))[:-20],
        pickled(),
    ],
    ids=["nothing", "nonsense", "broken zip", "archive", "petabytes", "cut header", "pickle"],
)
def test_whatever_bytes_come_instead_of_an_array_only_their_site_is_put_aside(data):
    result, told = outcome(answer(model_with(data)))
    assert (told.outcome, result.updates) == ("quarantined", [])
    assert "cannot be decoded" in told.reason or "has shape" in told.reason


def test_a_zip_is_what_numpy_would_open_without_the_check():
    assert zipfile.is_zipfile(io.BytesIO(archive()))


@pytest.mark.parametrize("count", [0, -3, MAX_EXAMPLES + 1])
def test_an_impossible_number_of_images_is_refused(count):
    assert f"num_examples is {count}" in outcome(answer({MODEL: tensor_record(GLOBAL)}, num_examples=count))[1].reason


def test_a_site_s_own_error_is_its_reason_and_a_broken_promise_stops_it():
    assert outcome(answer({}, error="DataError: x"))[1].outcome == "failed"
    assert outcome(answer({}, error="PrivacyError: spent", stopped=True))[1].outcome == "stopped"


def test_control_variates_may_leave_out_buffers_but_not_add_anything():
    model = tensor_record(GLOBAL)
    part = answer({MODEL: model, CONTROL_CHANGE: tensor_record({"w": torch.ones(2, 3)})})
    assert outcome(part, control=True)[0].updates[0].control_change["w"].sum() == 6
    stray = answer({MODEL: model, CONTROL_CHANGE: tensor_record({"x": torch.ones(1)})})
    assert "unknown: 'x'" in outcome(stray, control=True)[1].reason
    assert "holds no tensors" in outcome(answer({MODEL: model}), control=True)[1].reason


def test_replies_are_sorted_by_site_and_the_missing_are_named():
    asked = Expected("r", 2, {}, ASKED)
    opened, outcomes = open_replies([answer({}, to="m-b"), answer({}, to="m-a")], asked)
    assert (list(opened), outcomes) == (["a", "b"], [])
    _, outcomes = open_replies([answer({}, to="m-b")], asked)
    assert [(item.site, item.outcome) for item in outcomes] == [("a", "unreachable")]


def test_a_second_reply_and_a_stranger_s_are_not_counted():
    first, second, stranger = (answer({}, to=to) for to in ("m-a", "m-a", "nobody"))
    opened, outcomes = open_replies([first, second, stranger], Expected("r", 2, {}, {"m-a": "a"}))
    assert opened == {"a": first}
    assert outcomes == []


def test_a_crashed_site_is_known_by_the_question_it_was_asked():
    question = Message(RecordDict(), 7, "train")
    question.metadata.__dict__["_message_id"] = "m-b"
    crashed = Message(Error(2, "killed"), reply_to=question)
    _, outcomes = open_replies([crashed], Expected("r", 2, {}, {"m-b": "b"}))
    assert [(item.site, item.outcome) for item in outcomes] == [("b", "failed")]
    assert "killed" in outcomes[0].reason


def test_a_question_carries_the_instruction_and_its_tensors():
    instruction = Instruction(
        run="r",
        server_round=2,
        rounds=3,
        seed=0,
        classes=("x", "y"),
        model=ModelConfig(),
        local=LocalConfig(),
        phantom_images=40,
    )
    message = ask(7, "train", instruction, {MODEL: tensor_record(GLOBAL)})
    read = Instruction.model_validate_json(message.content.config_records[INSTRUCTION][JSON_KEY])
    assert read == instruction
    assert (message.metadata.dst_node_id, message.metadata.message_type, message.metadata.group_id) == (7, "train", "2")
    assert payload_bytes(message) >= 9 * 4


def with_grams(**grams) -> dict[str, ArrayRecord]:
    return {MODEL: tensor_record(LINEAR), GRAMS: tensor_record(grams)}


LINEAR = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2), "conv.weight": torch.zeros(4, 2, 3, 3)}


def gram_outcome(records):
    asked = Expected("r", 2, layout_of(LINEAR), {"m-a": "a"}, grams=True)
    result = validate([answer(records)], asked)
    return result, result.outcomes[0]


def test_gram_matrices_of_linear_layers_and_of_convolutions_patches_are_taken():
    result, told = gram_outcome(with_grams(fc=torch.eye(3), conv=torch.eye(18)))
    assert told.outcome == "ok"
    assert {name: tuple(gram.shape) for name, gram in result.updates[0].grams.items()} == {
        "fc": (3, 3),
        "conv": (18, 18),
    }


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({MODEL: tensor_record(LINEAR)}, "holds no Gram matrices"),
        (with_grams(fc=torch.eye(2)), "expected a float matrix of the layer's 3 inputs"),
        (with_grams(fc=torch.eye(3, dtype=torch.int64)), "expected a float matrix"),
        (with_grams(stray=torch.eye(3)), "the Gram matrix of 'stray'"),
        (with_grams(fc=torch.full((3, 3), float("inf"))), "'fc' holds 9 NaN or infinite of 9 values"),
    ],
    ids=["missing", "shape", "whole numbers", "unknown layer", "infinite"],
)
def test_gram_matrices_that_do_not_fit_put_their_site_aside(records, reason):
    result, told = gram_outcome(records)
    assert (told.outcome, result.updates) == ("quarantined", [])
    assert reason in told.reason


def test_what_a_site_keeps_is_filled_in_and_must_not_be_sent():
    layout, kept = {"w": layout_of(GLOBAL)["w"]}, {"b": torch.full((3,), 7.0)}
    asked = Expected("r", 2, layout, {"m-a": "a"}, kept=kept)
    result = validate([answer({MODEL: tensor_record({"w": torch.ones(2, 3)})})], asked)
    assert result.updates[0].state["b"].tolist() == [7, 7, 7]
    assert result.updates[0].state["w"].tolist() == [[1, 1, 1]] * 2
    refused = validate([answer({MODEL: tensor_record(GLOBAL)})], asked)
    assert "unknown: 'b'" in refused.outcomes[0].reason


def test_a_checked_message_gives_up_its_tensors_so_that_no_model_is_held_twice():
    message = answer({MODEL: tensor_record(GLOBAL)})
    result = validate([message], expected())
    assert not message.content.array_records
    assert result.outcomes[0].bytes_up > 0


def test_activation_statistics_that_do_not_fit_put_their_site_aside():
    symmetry = Symmetry("chain", {}, ())
    asked = Expected("r", 2, layout_of(GLOBAL), {"m-a": "a"}, seen=symmetry)
    stray = ArrayRecord({"stream|cross": Array(np.zeros((2, 2)))})
    result = validate([answer({MODEL: tensor_record(GLOBAL), ACTIVATIONS: stray})], asked)
    assert "statistics hold or lack 'stream|cross'" in result.outcomes[0].reason
