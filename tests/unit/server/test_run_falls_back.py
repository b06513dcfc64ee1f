"""A run whose files are damaged goes on from an earlier round, or from its start (server/rounds/record.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded_rounds import MODEL, done, plan, recorded

from popmi_core.errors import ModelError
from server.rounds.record import RunRecorder, open_writer
from server.store import RunReader


def interrupted(folder: Path, *, carried: bool = True) -> None:
    """Leave a run of three rounds as a killed server does."""
    writer = open_writer(plan(folder))
    recorder = RunRecorder.open(plan(folder), writer)
    for number in (1, 2, 3):
        recorder.begin_round(number)
        recorder.end_round(done(number), {"w": torch.full((3,), float(number))}, {"s": torch.tensor(number)})
    recorder.begin_round(4)
    writer.close()


@pytest.mark.parametrize("name", ["models/round-003.safetensors", "state/round-003.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\xff", lambda data: b""])
def test_a_damaged_checkpoint_falls_back_one_round_and_says_so(tmp_path, name, damage):
    interrupted(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        model, carried = recorder.last_state()
        assert (recorder.last_round, model["w"].tolist(), int(carried["s"])) == (2, [2, 2, 2], 2)
        with RunReader(tmp_path / "record.sqlite") as reader:
            assert [row.server_round for row in reader.rounds(1)] == [1, 2]
            (said,) = [row.text for row in reader.events(1) if "checkpoint" in row.text]
    assert "checkpoint of round 3: " in said
    assert said.endswith("Going on from the checkpoint of round 2.")


def test_without_any_whole_checkpoint_the_run_says_which_it_tried(tmp_path):
    interrupted(tmp_path)
    for path in (tmp_path / "models").glob("*.safetensors"):
        path.write_bytes(b"")
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        with pytest.raises(
            ModelError,
            match=r"no checkpoint of this run can be used: checkpoint of round 3.*round 1.* All 3 are damaged, "
            "expected one at most: look at the disk",
        ):
            recorder.last_state()
        with RunReader(tmp_path / "record.sqlite") as reader:
            assert [row.server_round for row in reader.rounds(1)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["models/round-001.safetensors", "state/round-001.safetensors"])
def test_with_its_only_checkpoint_damaged_a_run_begins_at_its_start_and_says_so(tmp_path, name):
    recorded(tmp_path, done(1)).close()
    (tmp_path / name).unlink()
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        model, carried = recorder.last_state()
        # Its state is not gone on from, but that site a's privacy ledger has an entry is not forgotten.
        assert (model, carried) == (None, {"ledger/a": torch.tensor(1)})
        assert (recorder.last_round, recorder.has_model) == (0, False)
        with RunReader(tmp_path / "record.sqlite") as reader:
            assert (reader.rounds(1), reader.sites(1)) == ((), ())
            (said,) = [row for row in reader.events(1) if "checkpoint" in row.text]
    assert said.level == "warning"
    assert said.text.startswith(f"checkpoint of round 1: cannot read checkpoint {tmp_path / name}")
    assert said.text.endswith("Round 1 is made anew, from the run's start.")


def test_ledgers_of_a_first_round_made_anew_are_counted_as_its_whole_state_file_says(tmp_path):
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.begin_round(1)
        recorder.end_round(done(1), MODEL, {"ledger/a": torch.tensor(4), "optimizer/round": torch.tensor(1)})
    (tmp_path / "models" / "round-001.safetensors").write_bytes(b"")
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        assert RunRecorder.open(again, writer).last_state() == (None, {"ledger/a": torch.tensor(4)})


def test_a_run_that_falls_back_to_a_round_without_a_model_has_none(tmp_path):
    recorded(tmp_path, done(1, fused=False), done(2)).close()
    (tmp_path / "models" / "round-002.safetensors").write_bytes(b"")
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        recorder.last_state()
        assert (recorder.last_round, recorder.has_model) == (1, False)


def test_a_run_that_was_never_begun_has_no_state_to_go_on_from(tmp_path):
    with open_writer(plan(tmp_path)) as writer:
        assert RunRecorder.open(plan(tmp_path), writer).last_state() == (None, {})
