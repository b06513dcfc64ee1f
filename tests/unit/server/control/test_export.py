"""A run as one file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile

import pytest

from popmi_core.errors import AuditError, RunError
from server.control.export import SUMS, export_run
from server.control.operate import start
from server.store import RunWriter


@pytest.fixture
def home(invited):
    return invited


@pytest.fixture
def finished(home):
    """Put a run of one round with a model into the home."""
    start(home, None, "first")
    folder = home.run_folder("first")
    (folder / "models").mkdir()
    model = folder / "models" / "round-001.safetensors"
    model.write_bytes(b"weights")
    model.with_suffix(".md").write_text("# card")
    (folder / "models" / "round-000.safetensors").write_bytes(b"older")
    writer = RunWriter(folder / "record.sqlite", heartbeat=0)
    writer.start_run(
        "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=1, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=["charite"],
    )  # fmt: skip
    writer.start_round(1)
    writer.record_site(1, "charite", phase="train", outcome="ok", num_examples=30)
    writer.finish_round(
        1, outcome="ok", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0, seconds_evaluate=1.0, notes={},
        model_sha256=hashlib.sha256(b"weights").hexdigest(),
    )  # fmt: skip
    writer.finish_run("finished")
    home.note("run.started", run="first", run_id=1)
    home.note("run.started", run="other", run_id=2)
    return folder


def test_a_run_is_exported_with_model_card_record_and_audit(home, finished, tmp_path, audited):
    out = tmp_path / "out" / "first.zip"
    names = export_run(home, "first", out)
    with zipfile.ZipFile(out) as packed:
        assert set(packed.namelist()) == {*names, SUMS}
        assert packed.read("model/round-001.safetensors") == b"weights"
        assert packed.read("model/round-001.md") == b"# card"
        assert "model/round-000.safetensors" not in packed.namelist()
        (row,) = csv.DictReader(io.StringIO(packed.read("record/sites.csv").decode()))
        assert (row["site"], row["num_examples"]) == ("charite", "30")
        assert json.loads(packed.read("record/run.json"))["status"] == "finished"
        told = [json.loads(line) for line in packed.read("audit.jsonl").splitlines()]
        assert [line["event"] for line in told] == ["run.wanted", "run.started"]
        assert len(packed.read("audit.head").strip()) == 64
        assert b"rounds = 3" in packed.read("config.toml")
    assert audited("run.exported")["run"] == "first"


def test_every_file_is_in_the_list_of_checksums(home, finished, tmp_path):
    export_run(home, "first", tmp_path / "first.zip")
    with zipfile.ZipFile(tmp_path / "first.zip") as packed:
        for line in packed.read(SUMS).decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(packed.read(name)).hexdigest() == digest


def test_no_path_of_the_server_leaves(home, finished, tmp_path):
    export_run(home, "first", tmp_path / "first.zip")
    with zipfile.ZipFile(tmp_path / "first.zip") as packed:
        assert "plan.json" not in packed.namelist()
        assert all(str(home.folder).encode() not in packed.read(name) for name in packed.namelist())


def test_a_model_that_is_not_the_records_is_never_exported(home, finished, tmp_path):
    (finished / "models" / "round-001.safetensors").write_bytes(b"other weights")
    with pytest.raises(RunError, match="is not the model that the record of round 1 tells of"):
        export_run(home, "first", tmp_path / "first.zip")
    assert list(tmp_path.glob("*.zip")) == []
    assert list(tmp_path.glob(".*partial")) == []


def test_a_changed_audit_log_is_never_exported(home, finished, tmp_path):
    home.audit_file.write_text(home.audit_file.read_text().replace('"first"', '"forged"'))
    with pytest.raises(AuditError, match="was changed after it was written"):
        export_run(home, "first", tmp_path / "first.zip")


def test_an_existing_file_is_kept(home, finished, tmp_path):
    (tmp_path / "first.zip").write_text("kept")
    with pytest.raises(RunError, match="exists already"):
        export_run(home, "first", tmp_path / "first.zip")
    assert (tmp_path / "first.zip").read_text() == "kept"


def test_a_run_without_a_record_has_nothing_to_export(home, tmp_path):
    start(home, None, "first")
    with pytest.raises(RunError, match="run first has no record yet"):
        export_run(home, "first", tmp_path / "first.zip")
    with pytest.raises(RunError, match=r"there is no run other. The runs are: first"):
        export_run(home, "other", tmp_path / "first.zip")


def test_a_place_that_cannot_be_written_is_told(home, finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_run(home, "first", tmp_path / "file" / "first.zip")
