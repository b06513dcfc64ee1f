"""What a site keeps from round to round."""

from __future__ import annotations

import pytest
import torch

from client.kept import KEPT_ROUNDS, load_kept, save_kept
from popmi_core import checkpoints
from popmi_core.errors import ModelError, RunError


def control(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def test_the_first_round_has_no_control_variate(tmp_path):
    assert load_kept(tmp_path, "control", "run", before=1) is None


def test_a_round_starts_from_what_the_round_before_led_to(tmp_path):
    for server_round in (1, 2, 3):
        save_kept(tmp_path, "control", "run", server_round, control(server_round))
    assert load_kept(tmp_path, "control", "run", before=4)["w"].tolist() == [3, 3]


def test_a_repeated_round_starts_from_what_its_first_attempt_started_from(tmp_path):
    for server_round in (1, 2):
        save_kept(tmp_path, "control", "run", server_round, control(server_round))
    assert load_kept(tmp_path, "control", "run", before=2)["w"].tolist() == [1, 1]


def test_a_round_the_site_missed_changes_nothing(tmp_path):
    save_kept(tmp_path, "control", "run", 1, control(1))
    assert load_kept(tmp_path, "control", "run", before=3)["w"].tolist() == [1, 1]


def test_another_run_has_its_own(tmp_path):
    save_kept(tmp_path, "control", "old", 1, control(1))
    assert load_kept(tmp_path, "control", "new", before=2) is None


def test_two_runs_by_turns_lose_nothing(tmp_path):
    for run, value in (("first", 1), ("../second", 2), ("first", 3)):
        save_kept(tmp_path, "personal", run, value, control(value))
        save_kept(tmp_path, "personal", run, 4, control(10 * value))
    assert load_kept(tmp_path, "personal", "../second", before=5)["w"].tolist() == [20, 20]
    assert load_kept(tmp_path, "personal", "first", before=5)["w"].tolist() == [30, 30]
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path}


def test_old_rounds_are_cleared_away(tmp_path):
    for server_round in range(1, KEPT_ROUNDS + 4):
        save_kept(tmp_path, "control", "run", server_round, control(server_round))
    assert len(list(tmp_path.iterdir())) == KEPT_ROUNDS


def test_a_damaged_file_is_named_and_never_taken_for_zero(tmp_path):
    save_kept(tmp_path, "control", "run", 1, control(1))
    (path,) = tmp_path.glob("control-001-*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ModelError, match=r"of round 1 \(control\) cannot be read.*control-001-\w+\.safetensors"
    ) as told:
        load_kept(tmp_path, "control", "run", before=2)
    # The text goes to the server: no folder of the hospital in it.
    assert str(tmp_path) not in str(told.value)


def test_a_full_disk_is_told_without_the_place(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(checkpoints, "replace_atomically", full)
    with pytest.raises(RunError, match=r"of round 3 \(personal\) cannot be written: No space left on device") as told:
        save_kept(tmp_path, "personal", "run", 3, control(1))
    assert str(tmp_path) not in str(told.value)


def test_control_variates_and_kept_parts_do_not_mix(tmp_path):
    save_kept(tmp_path, "control", "run", 1, control(1))
    save_kept(tmp_path, "personal", "run", 1, control(2))
    assert load_kept(tmp_path, "personal", "run", before=2)["w"].tolist() == [2, 2]
    assert load_kept(tmp_path, "control", "run", before=2)["w"].tolist() == [1, 1]
