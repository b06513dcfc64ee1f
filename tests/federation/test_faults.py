"""One site's fault never stops the others, and is told with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message

from client.app import app as client_app
from popmi_core.errors import DataError, RunError
from popmi_core.protocol import JSON_KEY, MODEL, REPORT, Report

BAD = "phantom_ruler"


def faulty(change, kind="train"):
    """Return a client app whose site ``BAD`` answers ``kind`` messages with ``change(reply)``."""

    def app(message, context):
        reply = client_app(message, context)
        if context.node_config["site"] == BAD and message.metadata.message_type == kind:
            return change(reply)
        return reply

    return app


def first_tensor(reply):
    return sorted(reply.content.array_records[MODEL].keys())[0]


def with_tensor(value):
    def change(reply):
        name = first_tensor(reply)
        reply.content.array_records[MODEL][name] = Array(value(reply.content.array_records[MODEL][name].numpy()))
        return reply

    return change


def poisoned(array):
    copy = array.copy()
    copy.flat[0] = np.nan
    return copy


def with_report(**changes):
    def change(reply):
        report = Report.model_validate_json(reply.content.config_records[REPORT][JSON_KEY])
        changed = report.model_copy(update=changes).model_dump_json()
        reply.content.config_records[REPORT] = ConfigRecord({JSON_KEY: changed})
        return reply

    return change


def without_tensor(reply):
    del reply.content.array_records[MODEL][first_tensor(reply)]
    return reply


def with_stray_tensor(reply):
    reply.content.array_records[MODEL]["stray"] = Array(np.zeros(3, np.float32))
    return reply


def damaged(reply):
    name = first_tensor(reply)
    array = reply.content.array_records[MODEL][name]
    broken = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:40])
    reply.content.array_records[MODEL][name] = broken
    return reply


def without_model(reply):
    del reply.content.array_records[MODEL]
    return reply


def without_report(reply):
    del reply.content.config_records[REPORT]
    return reply


def raises(reply):
    raise ValueError("patient 123")


def huge(reply):
    record = reply.content.array_records[MODEL]
    for name in ("blocks.0.norm1.weight", "blocks.0.attn.qkv.weight"):
        record[name] = Array(np.full_like(record[name].numpy(), 1e25))
    return reply


CASES = {
    "NaN": (with_tensor(poisoned), "quarantined", "NaN or infinite"),
    "wrong shape": (with_tensor(lambda array: array[:1]), "quarantined", "expected"),
    "broadcastable shape": (with_tensor(lambda array: array[None]), "quarantined", "has shape"),
    "wrong dtype": (with_tensor(lambda array: array.astype(np.float64)), "quarantined", "dtype float64"),
    "missing tensor": (without_tensor, "quarantined", "missing: '"),
    "stray tensor": (with_stray_tensor, "quarantined", "unknown: 'stray'"),
    "damaged payload": (damaged, "quarantined", "cannot be decoded"),
    "no tensors": (without_model, "quarantined", "holds no tensors"),
    "no report": (without_report, "quarantined", "holds no report"),
    "no examples": (with_report(num_examples=0), "quarantined", "num_examples is 0"),
    "another round": (with_report(server_round=7), "quarantined", "round 7"),
    "copy of an earlier reply": (with_report(nonce="0123456789abcdef"), "quarantined", "copy of an earlier one"),
    "more examples than at joining": (with_report(num_examples=43), "quarantined", "expected 1 to 42"),
    "norm explosion": (huge, "quarantined", "expected at most"),
    "oversize": (with_tensor(lambda array: np.zeros(5_000_000, np.float32)), "quarantined", "the reply holds 2013"),
    "raises": (raises, "failed", "ValueError"),
    "returns nothing": (lambda reply: None, "failed", "ended"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_update_is_put_aside_and_the_round_goes_on(federation, case):
    change, outcome, reason = CASES[case]
    plan = federation.plan(rounds=1, sites=["phantom_polarised", BAD])
    federation.run(plan, faulty(change))
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
        assert reader.run().status == "finished"
    assert rows["phantom_polarised"].outcome == "ok"
    assert rows[BAD].outcome == outcome
    assert reason in rows[BAD].reason
    assert "patient" not in rows[BAD].reason


def test_a_site_whose_weights_overflow_in_matching_is_put_aside_and_the_round_goes_on(federation, monkeypatch):
    # As of models above 20 million numbers, which are compared in float32.
    monkeypatch.setattr("popmi_core.matching.opm._LARGE", 0)

    limits = {"max_change": 1e30}
    plan = federation.plan(rounds=1, local={"batch_size": 32, "objective": "control_variates"}, limits=limits)
    federation.run(plan, faulty(huge))
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
        rounds = reader.rounds(1)
    assert rounds[-1].outcome == "ok"
    assert set(rounds[-1].notes["weights"]) == {"phantom_polarised", "phantom_slide"}
    assert {site: row.outcome for site, row in rows.items() if row.outcome != "ok"} == {BAD: "quarantined"}
    assert f"site {BAD}, with norms folded in: 'blocks.0.attn.qkv.weight' holds NaN or infinity" in rows[BAD].reason


def test_a_round_left_with_too_few_sites_by_matching_is_void_and_says_why(federation, monkeypatch):
    monkeypatch.setattr("popmi_core.matching.opm._LARGE", 0)
    plan = federation.plan(rounds=1, min_sites=3, limits={"max_change": 1e30})

    with pytest.raises(
        RunError, match=rf"void: 2 usable update\(s\), at least 3 needed; {BAD}: site {BAD}, with norms"
    ):
        federation.run(plan, faulty(huge))


@pytest.mark.parametrize("change", [without_report, raises, with_report(metrics={})], ids=["silent", "raises", "empty"])
def test_a_site_that_cannot_evaluate_does_not_stop_the_round(federation, change):
    plan = federation.plan(rounds=1, sites=["phantom_polarised", BAD])
    federation.run(plan, faulty(change, "evaluate"))
    with federation.read(plan) as reader:
        assert reader.run().status == "finished"
        assert reader.metrics(1, scope="phantom_polarised", split="val")


def test_an_unexpected_exception_leaves_the_site_without_its_text(federation, monkeypatch):
    def explode(*args, **kwargs):
        raise ValueError("IMG_patient_4711.png is broken")

    monkeypatch.setattr("client.app.train_locally", explode)
    plan = federation.plan(rounds=1)
    with pytest.raises(RunError):
        federation.run(plan)
    with federation.read(plan) as reader:
        reasons = [row.reason for row in reader.sites(1) if row.phase == "train"]
    assert all("ValueError" in reason and "4711" not in reason for reason in reasons)


def test_a_run_in_which_no_site_ever_answers_ends_failed(federation):
    plan = federation.plan(rounds=5)

    def app(message, context):
        return None if message.metadata.message_type == "train" else client_app(message, context)

    with pytest.raises(RunError, match="3 round"):
        federation.run(plan, app)
    with federation.read(plan) as reader:
        run = reader.run()
    assert run.status == "failed"
    assert "phantom_slide" in run.reason


def test_a_site_whose_data_cannot_be_read_stays_out_and_the_others_train(federation, monkeypatch):
    from client import load

    read = load._read_once.__wrapped__

    def only_others(site, *rest):
        if site == BAD:
            raise DataError(f"site {BAD}: rows 3 and 9 have no known diagnosis. Mend the label map.")
        return read(site, *rest)

    monkeypatch.setattr(load, "_read_once", only_others)
    plan = federation.plan(rounds=1)
    federation.run(plan)
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
        assert reader.run().status == "finished"
    assert rows[BAD].outcome == "failed"
    assert "rows 3 and 9" in rows[BAD].reason


def test_a_run_no_site_can_join_fails_before_the_first_round(federation, monkeypatch):
    from client import load

    def broken(site, *rest):
        raise DataError(f"site {site}: no image can be read.")

    monkeypatch.setattr(load, "_read_once", broken)
    plan = federation.plan()
    with pytest.raises(RunError, match="no site could join"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.run().status == "failed"


def test_what_a_site_changes_in_place_does_not_reach_the_server(federation):
    seen = []

    def app(message, context):
        before = {name: array.numpy().copy() for name, array in message.content.array_records.get(MODEL, {}).items()}
        reply = client_app(message, context)
        seen.append(before)
        for name, value in before.items():
            message.content.array_records[MODEL][name] = Array(np.zeros_like(value))
        return reply

    plan = federation.plan(rounds=1)
    federation.run(plan, app)
    broadcast = [state for state in seen if state]
    assert all((broadcast[0][name] == state[name]).all() for state in broadcast[:3] for name in state)


def test_array_record_of_a_stranger_is_ignored(federation):
    def stray(reply):
        return Message(reply.content, reply_to=_other(reply))

    def _other(reply):
        other = Message(reply.content, dst_node_id=1, message_type="train")
        other.metadata.__dict__["_message_id"] = "nobody asked"
        return other

    plan = federation.plan(rounds=1)
    federation.run(plan, faulty(stray))
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
    assert rows[BAD].outcome == "unreachable"


def test_a_site_without_validation_images_still_takes_part(federation, monkeypatch):
    from dataclasses import replace

    from client import load
    from popmi_core.data import ImageSet

    read = load._read_once.__wrapped__

    def without_val(site, *rest):
        data = read(site, *rest)
        return replace(data, val=ImageSet.empty(32)) if site == BAD else data

    monkeypatch.setattr(load, "_read_once", without_val)
    plan = federation.plan(rounds=1)
    federation.run(plan)
    with federation.read(plan) as reader:
        rows = [row for row in reader.sites(1) if row.site == BAD]
        splits = {row.split for row in reader.metrics(1, scope=BAD)}
    assert {row.outcome for row in rows} == {"ok"}
    assert splits == {"train", "test"}
