"""What a recorder does when there is no room, and what it tells the audit log (server/rounds/record.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from popmi_core.audit import AuditLog
from popmi_core.config import parse_config
from popmi_core.errors import RunError
from popmi_core.fusion import Fused
from popmi_core.protocol import AUDIT_FILE, RunPlan
from server import patience
from server.exchange import Late
from server.results import Evaluation, RoundResult, SiteOutcome
from server.roster import Roster
from server.rounds import record
from server.rounds.record import RunRecorder, open_writer
from server.store import RunReader

MODEL = {"w": torch.ones(3)}


def plan(folder: Path, **changes) -> RunPlan:
    return RunPlan(
        run="trial", config=parse_config({"rounds": 3}), folder=str(folder), data_name="skin", phantom=False,
        classes=("mel", "nv"), lineup=(), **changes,
    )  # fmt: skip


def done(server_round: int) -> RoundResult:
    return RoundResult(
        server_round=server_round, seconds=1.0, seconds_combine=0.1,
        train=[SiteOutcome("a", "ok"), SiteOutcome("b", "quarantined", "'w' holds 3 NaN")],
        evaluate=[], matched=[], fused=Fused(MODEL, {"a": 1.0}, {}), note="", evaluation=Evaluation(),
    )  # fmt: skip


def test_a_disk_that_is_full_again_at_once_does_not_end_the_run_over_a_line_in_the_diary(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)
    described = plan(tmp_path, patience=60.0)
    with open_writer(described) as writer:
        recorder, tries = RunRecorder.open(described, writer), iter([RunError("no room"), "written"])

        def action():
            if isinstance(found := next(tries), RunError):
                raise found
            return found

        def full(*_, **__):
            raise RunError("no room")

        monkeypatch.setattr(writer, "event", full)
        assert recorder.patiently(action) == "written"


def test_faults_of_a_round_stand_in_the_server_s_audit_log_before_the_round_counts(tmp_path):
    described = plan(tmp_path / "run", names=("a", "b"), sites_file=str(tmp_path / "sites.json"))
    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        recorder.begin_round(1)
        recorder.end_round(done(1), MODEL, {})
        recorder.late(Late("b", 1, "train", 12.0))
        writer.finish_run("finished")
    told = [(item.event, item.details.get("site")) for item in AuditLog(tmp_path / AUDIT_FILE).entries()]
    assert told == [("site.quarantined", "b"), ("run.warning", None)]


def test_halves_that_a_killed_process_left_are_cleared_away_and_whole_models_are_not(tmp_path):
    described = plan(tmp_path, names=("a", "b"), sites_file=str(tmp_path / "sites.json"))
    (tmp_path / "models").mkdir()
    for name in (".round-002.safetensors.k3x.tmp", "round-001.safetensors"):
        (tmp_path / "models" / name).write_bytes(b"bytes")
    with open_writer(described):
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["round-001.safetensors"]


LOCKED = "record r.sqlite cannot be written: database is locked. Check free space and rights, then resume the run."


def locked_for(times: int, monkeypatch, owner: object, name: str) -> list[str]:
    """Let a call fail the first ``times`` times as while something else holds the record; return a line a call."""
    monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)
    tries, call = [], getattr(owner, name)

    def tried(*given, **named):
        tries.append(name)
        if len(tries) <= times:
            raise RunError(LOCKED)
        return call(*given, **named)

    monkeypatch.setattr(owner, name, tried)
    return tries


def test_a_locked_record_is_waited_for_when_a_run_begins_and_when_it_goes_on(tmp_path, monkeypatch):
    for name, resume in (("start_run", False), ("resume_run", True)):
        described = plan(tmp_path, patience=60.0, resume=resume)
        with open_writer(described) as writer, monkeypatch.context() as patch:
            tries = locked_for(2, patch, writer, name)
            assert RunRecorder.open(described, writer).last_round == 0
            assert len(tries) == 3
            writer.finish_run("stopped")


def test_a_locked_record_is_waited_for_when_the_last_checkpoint_is_looked_for(tmp_path, monkeypatch):
    described = plan(tmp_path, patience=60.0)
    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        for number in (1, 2):
            recorder.begin_round(number)
            recorder.end_round(done(number), MODEL, {})
        (tmp_path / "models" / "round-002.safetensors").write_bytes(b"")
        reads = locked_for(1, monkeypatch, record.RunReader, "rounds")
        drops = locked_for(1, monkeypatch, writer, "drop_rounds")
        assert recorder.last_state()[0]["w"].tolist() == MODEL["w"].tolist()
        assert (len(reads), len(drops), recorder.last_round) == (3, 2, 1)
        writer.finish_run("stopped")


def test_without_patience_a_locked_record_is_an_error_at_once(tmp_path, monkeypatch):
    described = plan(tmp_path)
    with open_writer(described) as writer:
        locked_for(1, monkeypatch, writer, "start_run")
        with pytest.raises(RunError, match="database is locked"):
            RunRecorder.open(described, writer)


def test_a_round_that_waits_for_room_tells_the_diary_of_its_sites_once(tmp_path, monkeypatch):
    described = plan(tmp_path, patience=60.0)
    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        recorder.begin_round(1)
        tries = locked_for(5, monkeypatch, record, "save_state")
        recorder.end_round(done(1), MODEL, {})
        writer.finish_run("finished")
    assert len(tries) == 6
    with RunReader(tmp_path / "record.sqlite") as reader:
        assert [row.text for row in reader.events(1) if row.server_round == 1] == [
            "b: train quarantined: 'w' holds 3 NaN"
        ]


def test_a_line_on_a_refused_site_is_not_written_again_while_the_next_waits(tmp_path, monkeypatch):
    described = plan(tmp_path, patience=60.0)
    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)
        tries, event = [], writer.event

        def full_at_the_second(text, **given):
            tries.append(text)
            if len(tries) == 2:
                raise RunError("record: database or disk is full.")
            event(text, **given)

        monkeypatch.setattr(writer, "event", full_at_the_second)
        recorder.joined(Roster(refused={"b": "no data", "c": "no label"}))
        writer.finish_run("stopped")
    with RunReader(tmp_path / "record.sqlite") as reader:
        told = [row.text for row in reader.events(1) if "could not join" in row.text]
    assert told == ["b could not join: no data", "c could not join: no label"]


def test_void_rounds_at_the_end_are_named_with_their_reason(tmp_path):
    described = plan(tmp_path)
    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        told = []
        for number, fused in ((1, True), (2, False), (3, False)):
            recorder.begin_round(number)
            note = "" if fused else "void: 1 usable update(s), at least 2 needed"
            made = done(number)
            recorder.end_round(replace(made, fused=made.fused if fused else None, note=note), MODEL, {})
            told.append(recorder.void_at_end())
        writer.finish_run("finished")
    assert told[0] is None
    why = "void: 1 usable update(s), at least 2 needed"
    assert told[2] == (
        f"no new model came of the last 2 round(s) (round 2: {why}; round 3: {why}); "
        "the model is that of the round before"
    )


def paused_run(tmp_path, monkeypatch, failures, *, in_between=lambda: None):
    """Have a run wait for room as often as told, and return the events of the audit log with their details."""
    monkeypatch.setattr(patience.time, "sleep", lambda _: in_between())
    described = plan(tmp_path / "run", names=("a", "b"), sites_file=str(tmp_path / "sites.json"), patience=60.0)
    waiting = [RunError(text) for text in failures]

    def action():
        if waiting:
            raise waiting.pop(0)
        return "written"

    with open_writer(described) as writer:
        recorder = RunRecorder.open(described, writer)
        assert recorder.patiently(action) == "written"
    return recorder


def events(tmp_path):
    return [(item.event, item.details) for item in AuditLog(tmp_path / AUDIT_FILE).entries()]


def test_a_pause_and_its_end_stand_in_the_audit_log_once_each(tmp_path, monkeypatch):
    paused_run(tmp_path, monkeypatch, ["no room", "no room", "no database", "no room"])
    (paused, begun), (resumed, ended) = events(tmp_path)
    assert (paused, begun["reason"], begun["run"]) == ("run.paused", "no room", "trial")
    assert (resumed, ended["reason"]) == ("run.resumed-by-itself", "no room")
    assert ended["seconds"] >= 0
    assert ended["at"] >= begun["at"]


def test_what_did_not_wait_is_no_pause(tmp_path, monkeypatch):
    paused_run(tmp_path, monkeypatch, [])
    assert not (tmp_path / AUDIT_FILE).exists()


def test_where_the_log_has_no_room_either_a_pause_is_written_once_it_has(tmp_path, monkeypatch):
    seen = []
    (tmp_path / AUDIT_FILE).mkdir()

    def room_at_last():
        seen.append(1)
        if len(seen) == 2:
            (tmp_path / AUDIT_FILE).rmdir()

    paused_run(tmp_path, monkeypatch, ["no room"] * 3, in_between=room_at_last)
    assert [event for event, _ in events(tmp_path)] == ["run.paused", "run.resumed-by-itself"]


def test_a_log_that_has_room_only_after_the_pause_is_made_good_with_the_round(tmp_path, monkeypatch):
    (tmp_path / AUDIT_FILE).mkdir()
    recorder = paused_run(tmp_path, monkeypatch, ["no room"])
    (tmp_path / AUDIT_FILE).rmdir()
    recorder.faults.round(done(1))
    assert [event for event, _ in events(tmp_path)] == ["run.paused", "run.resumed-by-itself", "site.quarantined"]
