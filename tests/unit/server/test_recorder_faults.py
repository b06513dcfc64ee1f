"""What a recorder does when there is no room, and what it tells the audit log (server/rounds/record.py)."""

from __future__ import annotations

from pathlib import Path

import torch

from popmi_core.audit import AuditLog
from popmi_core.config import parse_config
from popmi_core.errors import RunError
from popmi_core.fusion import Fused
from popmi_core.protocol import AUDIT_FILE, RunPlan
from server.exchange import Late
from server.results import Evaluation, RoundResult, SiteOutcome
from server.rounds import record
from server.rounds.record import RunRecorder, open_writer

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
    monkeypatch.setattr(record.time, "sleep", lambda _: None)
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
