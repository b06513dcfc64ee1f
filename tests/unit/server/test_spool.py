"""Updates that wait on disk (server/spool.py)."""

from __future__ import annotations

import pytest
import torch

from popmi_core.checkpoints import FileState
from popmi_core.errors import RunError
from server import spool as spool_module
from server.results import MatchedUpdate, TrainedUpdate
from server.spool import Spool

STATE = {"w": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


def update(**changes):
    return TrainedUpdate(**{"site": "a", "state": STATE, "num_examples": 5, **changes})


def test_an_update_is_the_same_from_its_file(tmp_path):
    kept = Spool(tmp_path / "incoming").raw(update(control_change={"w": torch.ones(2)}, grams={"w": torch.eye(2)}))
    assert isinstance(kept.state, FileState)
    assert {name: tensor.tolist() for name, tensor in kept.state.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    assert kept.control_change["w"].tolist() == [1, 1]
    assert kept.grams["w"].tolist() == [[1, 0], [0, 1]]
    assert kept.num_examples == 5


def test_a_matched_update_goes_into_a_file_and_one_that_lies_in_one_stays(tmp_path):
    spool = Spool(tmp_path / "incoming")
    raw = spool.raw(update())
    assert spool.matched(MatchedUpdate("a", raw.state, 5)).state is raw.state
    turned = spool.matched(MatchedUpdate("a", {"w": torch.zeros(3)}, 5)).state
    assert turned["w"].tolist() == [0, 0, 0]
    assert raw.state["w"].tolist() == STATE["w"].tolist()


def test_a_transposed_tensor_keeps_its_values(tmp_path):
    kept = Spool(tmp_path / "incoming").raw(update(state={"w": STATE["w"].T}))
    assert torch.equal(kept.state["w"], STATE["w"].T)


def test_nothing_is_left_when_the_round_is_over(tmp_path):
    spool = Spool(tmp_path / "incoming")
    spool.raw(update())
    spool.clear()
    assert list(tmp_path.iterdir()) == []
    spool.clear()


def test_without_a_folder_everything_stays_in_memory():
    spool = Spool(None)
    assert spool.raw(update()).state is STATE
    assert spool.matched(MatchedUpdate("a", STATE, 5)).state is STATE
    spool.clear()


def test_no_room_is_said_and_nothing_half_is_left(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.spool.save_file", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left on device.*has room"):
        Spool(tmp_path / "incoming").raw(update())
    assert list((tmp_path / "incoming").iterdir()) == []


def test_without_room_it_asks_whoever_is_patient(tmp_path, monkeypatch):
    tries = []
    write = spool_module.save_file

    def full_once(tensors, path):
        tries.append(path)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        write(tensors, path)

    def patiently(action):
        try:
            return action()
        except RunError:
            return action()

    monkeypatch.setattr(spool_module, "save_file", full_once)
    kept = Spool(tmp_path / "incoming", patiently).raw(update())
    assert len(tries) == 2
    assert torch.equal(kept.state["w"], STATE["w"])
