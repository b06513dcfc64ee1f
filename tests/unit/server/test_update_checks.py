"""Which updates come near the average (server/rounds/validate.py, replies.py, wire.py)."""

from __future__ import annotations

import gc
import io
import weakref
import zipfile

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from site_answers import GLOBAL, answer, expected, outcome

from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.protocol import (
    CONTROL_CHANGE,
    INSTRUCTION,
    JSON_KEY,
    MAX_EXAMPLES,
    MODEL,
    Instruction,
)
from server.replies import Expected, layout_of, open_replies, payload_bytes
from server.results import SiteOutcome
from server.rounds.validate import validate
from server.wire import ask, packed, tensor_record

ASKED = {"m-a": "a", "m-b": "b"}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


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


def test_an_update_from_no_images_is_refused():
    refused = outcome(answer({MODEL: tensor_record(GLOBAL)}, num_examples=0))[1]
    assert f"num_examples is 0, expected 1 to {MAX_EXAMPLES}" in refused.reason


@pytest.mark.parametrize("count", [-3, MAX_EXAMPLES + 1, 3_000_000_000, 2**63])
def test_an_impossible_number_of_images_is_refused_and_nothing_of_it_is_kept(count):
    refused = outcome(answer({MODEL: tensor_record(GLOBAL)}, change={"num_examples": count}))[1]
    assert (refused.outcome, refused.report) == ("quarantined", None)
    assert "unreadable report (fields: num_examples: " in refused.reason


def test_more_moved_units_than_there_are_put_the_site_aside():
    told = {"gains": {"mlp": 0.5}, "moved": {"mlp": 9}, "units": {"mlp": 8}}
    _, found = outcome(answer({MODEL: tensor_record(GLOBAL)}, **told))
    assert found.outcome == "quarantined"
    assert "site a, round 2: 9 units of 'mlp' were moved, expected at most its 8" in found.reason
    assert outcome(answer({MODEL: tensor_record(GLOBAL)}, **{**told, "moved": {"mlp": 8}}))[1].outcome == "ok"


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


def opened(replies, asked):
    """Return the first answer of every site and all outcomes."""
    found = {}

    def keep(site, message):
        found[site] = message
        return SiteOutcome(site, "ok")

    return found, open_replies(replies, asked, keep)


def test_outcomes_are_sorted_by_site_and_the_missing_are_named():
    asked = Expected("r", 2, {}, ASKED)
    found, outcomes = opened([answer({}, to="m-b"), answer({}, to="m-a")], asked)
    assert list(found) == ["b", "a"]
    assert [(item.site, item.outcome) for item in outcomes] == [("a", "ok"), ("b", "ok")]
    _, outcomes = opened([answer({}, to="m-b")], asked)
    assert [(item.site, item.outcome) for item in outcomes] == [("a", "unreachable"), ("b", "ok")]


def test_why_a_site_is_missing_is_told_where_somebody_knows():
    _, outcomes = opened([], Expected("r", 2, {}, ASKED, missing={"a": ("late", "no answer when ...")}))
    assert [(item.outcome, item.reason[:9]) for item in outcomes] == [
        ("late", "no answer"),
        ("unreachable", "no reply "),
    ]


def test_a_second_reply_and_a_stranger_s_are_not_counted():
    first, second, stranger = (answer({}, to=to) for to in ("m-a", "m-a", "nobody"))
    found, outcomes = opened([first, second, stranger], Expected("r", 2, {}, {"m-a": "a"}))
    assert found == {"a": first}
    assert len(outcomes) == 1


@pytest.mark.parametrize(("code", "outcome"), [(2, "failed"), (3, "unreachable"), (5, "unreachable")])
def test_a_crashed_site_is_known_by_the_question_it_was_asked(code, outcome):
    question = Message(RecordDict(), 7, "train")
    question.metadata.__dict__["_message_id"] = "m-b"
    crashed = Message(Error(code, "killed"), reply_to=question)
    _, outcomes = opened([crashed], Expected("r", 2, {}, {"m-b": "b"}))
    assert [(item.site, item.outcome) for item in outcomes] == [("b", outcome)]
    assert "killed" in outcomes[0].reason


def test_updates_are_in_the_order_of_names_whatever_order_they_came_in():
    model = {MODEL: tensor_record(GLOBAL)}
    replies = [answer(model, to="m-b", site="b"), answer({MODEL: tensor_record(GLOBAL)}, to="m-a")]
    result = validate(replies, Expected("r", 2, layout_of(GLOBAL), ASKED))
    assert [item.site for item in result.updates] == ["a", "b"]


def test_a_copy_of_an_earlier_reply_is_refused():
    told = outcome(answer({MODEL: tensor_record(GLOBAL)}, nonce="old"), nonce="new")[1]
    assert told.outcome == "quarantined"
    assert "repeats number 'old', expected 'new'" in told.reason


def test_more_images_than_the_site_had_when_it_joined_are_refused():
    update = {MODEL: tensor_record(GLOBAL)}
    assert "num_examples is 5, expected 1 to 4" in outcome(answer(update), enrolled={"a": {"train": 4}})[1].reason
    assert outcome(answer({MODEL: tensor_record(GLOBAL)}), enrolled={"a": {"train": 5, "val": 1}})[1].outcome == "ok"


def test_a_change_beyond_its_bound_is_refused_with_norm_and_bound():
    start = {name: torch.ones_like(tensor) for name, tensor in GLOBAL.items()}
    far = {name: tensor + 100.0 for name, tensor in start.items()}
    # Nine numbers moved by 100 each: 300; they started from a norm of 3.
    told = outcome(answer({MODEL: tensor_record(far)}), reference=start, max_change=99.0)[1]
    assert "moved by 300 (Euclidean norm), expected at most 297" in told.reason
    assert outcome(answer({MODEL: tensor_record(far)}), reference=start, max_change=101.0)[1].outcome == "ok"


def test_a_reply_heavier_than_any_model_of_this_layout_is_refused_before_it_is_decoded():
    heavy = {MODEL: tensor_record({**GLOBAL, "w": torch.zeros(2_000_000)})}
    assert "bytes, expected at most" in outcome(answer(heavy))[1].reason


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


def test_what_a_checked_answer_held_goes_at_once_and_not_when_garbage_is_looked_for():
    message = answer({MODEL: tensor_record(GLOBAL), CONTROL_CHANGE: tensor_record(GLOBAL)})
    held = [weakref.ref(message.content[name]) for name in (MODEL, CONTROL_CHANGE)]
    gc.disable()
    try:
        result = validate([message], expected(control=True))
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
    assert result.outcomes[0].outcome == "ok"


def test_a_packed_update_counts_as_an_unpacked_one():
    result, told = outcome(answer({MODEL: packed(tensor_record(GLOBAL))}))
    assert told.outcome == "ok"
    assert list(result.updates[0].state) == ["b", "w"]
    result.updates[0].state["w"].add_(1)
    assert GLOBAL["w"].sum() == 0


def test_a_packed_update_is_checked_tensor_by_tensor():
    wrong = {"w": torch.zeros(1, 2, 3), "b": torch.zeros(3)}
    assert "'w' has shape (1, 2, 3)" in outcome(answer({MODEL: packed(tensor_record(wrong))}))[1].reason
    odd = {"w": torch.zeros(2, 3), "b": torch.tensor([0.0, float("nan"), 0.0])}
    assert "'b' holds 1 NaN or infinite of 3" in outcome(answer({MODEL: packed(tensor_record(odd))}))[1].reason


@pytest.mark.parametrize("change", [lambda block: block[:-3], lambda block: bytes(16) + block[16:], lambda block: b""])
def test_a_damaged_block_puts_its_site_aside_and_says_so(change):
    block = change(packed(tensor_record(GLOBAL))["safetensors"].data)
    record = ArrayRecord({"safetensors": Array(dtype="uint8", shape=(9,), stype="safetensors", data=block)})
    result, told = outcome(answer({MODEL: record}))
    assert (told.outcome, result.updates) == ("quarantined", [])
    assert told.reason.startswith(f"site a, round 2: {len(block)} bytes cannot be decoded as packed tensors")


def test_a_heavy_reply_is_put_aside_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr("server.replies.unpacked", lambda content: pytest.fail("it was unpacked"))
    heavy = packed(ArrayRecord({"w": Array(np.zeros(2_000_000, np.float32))}))
    asked = expected()
    found, outcomes = opened([answer({MODEL: heavy})], asked)
    assert found == {}
    assert outcomes[0].outcome == "quarantined"
    assert "site a, round 2: the reply holds 8" in outcomes[0].reason
    assert outcomes[0].bytes_up > 8_000_000
    assert asked.spoilt == {"a"}


def test_a_usable_answer_spoils_nothing_and_an_error_does():
    asked = Expected("r", 2, layout_of(GLOBAL), ASKED)
    good, bad = answer({MODEL: tensor_record(GLOBAL)}), answer({}, to="m-b", site="b", error="DataError: no image")
    validate([good, bad], asked)
    assert asked.spoilt == {"b"}


def test_what_a_site_sent_before_its_key_was_revoked_is_not_used():
    replies = [answer({MODEL: tensor_record(GLOBAL)}), answer({MODEL: tensor_record(GLOBAL)}, to="m-b", site="b")]
    asked = Expected("r", 2, layout_of(GLOBAL), ASKED)
    result = validate(replies, asked, revoked=lambda: ["b"])
    assert [update.site for update in result.updates] == ["a"]
    assert [(item.site, item.outcome) for item in result.outcomes] == [("a", "ok"), ("b", "quarantined")]
    assert result.outcomes[1].reason == "site b, round 2: its key was revoked during the round"


def test_one_flipped_bit_of_a_weight_is_noticed():
    block = packed(tensor_record({"w": torch.ones(2, 3), "b": torch.ones(3)}))["safetensors"].data
    changed = block[:-3] + bytes([block[-3] ^ 1]) + block[-2:]
    record = ArrayRecord({"safetensors": Array("uint8", (len(changed),), "safetensors", changed)})
    told = outcome(answer({MODEL: record}))[1]
    assert (told.outcome, "The payload is damaged" in told.reason) == ("quarantined", True)
