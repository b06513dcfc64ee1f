"""Rounds of a real federation at the server, whose updates wait on its disk (server/strategy.py)."""

from __future__ import annotations

import tempfile

from light_sites import light_plan, run_rounds

from popmi_core.fusion import shelf
from server import exchange, patience
from server.store import RunReader

CONTROL = {"local": {"objective": "control_variates"}}
OPM = {"fuse": {"rule": "opm"}}


def outcomes(plan) -> list[str]:
    with RunReader(f"{plan.folder}/record.sqlite") as reader:
        return [row.outcome for row in reader.rounds(1)]


def test_the_control_variate_is_packed_once_for_all_sites(tmp_path, monkeypatch):
    made, pack = [], exchange.packed
    monkeypatch.setattr(exchange, "packed", lambda record: made.append(record) or pack(record))
    run_rounds(light_plan(tmp_path, 4, **CONTROL))
    # The model and the control variate to train with, and the model to evaluate.
    assert len(made) == 3


def test_models_a_rule_moved_wait_on_the_run_s_disk_and_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    waiting, write = [], shelf.save_file

    def seen(tensors, path):
        waiting.append(path)
        write(tensors, path)

    monkeypatch.setattr(shelf, "save_file", seen)
    plan = light_plan(tmp_path / "run", 3, **OPM)
    run_rounds(plan, moved=True)
    assert outcomes(plan) == ["ok"]
    assert waiting
    assert all(path.is_relative_to(tmp_path / "run" / "incoming") for path in waiting)
    assert not (tmp_path / "run" / "incoming").exists()


def test_what_a_killed_server_left_on_the_shelf_is_cleared_away(tmp_path):
    left = tmp_path / "incoming" / "popmi-k3x" / "1.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a model")
    run_rounds(light_plan(tmp_path, 3))
    assert not left.exists()


def test_a_disk_without_room_for_moved_models_pauses_the_round(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)
    tries, write = [], shelf.save_file

    def full_twice(tensors, path):
        tries.append(path)
        if len(tries) <= 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        assert not path.exists()
        write(tensors, path)

    monkeypatch.setattr(shelf, "save_file", full_twice)
    plan = light_plan(tmp_path, 3, patience=60.0, **OPM)
    run_rounds(plan, moved=True)
    assert outcomes(plan) == ["ok"]
    with RunReader(tmp_path / "record.sqlite") as reader:
        (said,) = [row.text for row in reader.events(1) if "No space left" in row.text]
    assert said.startswith("paused for")
