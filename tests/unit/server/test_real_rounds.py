"""Rounds of a real federation at the server, whose updates wait on its disk (server/strategy.py)."""

from __future__ import annotations

import tempfile

import pytest
from light_sites import LightSites, light_plan, run_rounds

from popmi_core.fusion import shelf
from popmi_core.protocol import Report
from server import exchange, patience
from server.carried import Carried
from server.results import SiteOutcome
from server.roster import Roster
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


class Spending(LightSites):
    """Sites whose privacy ledger has an entry for every round."""

    def figures(self, site, instruction):
        return {"epsilon": 0.5 * instruction.server_round, "ledger_entries": instruction.server_round}


def told(grid: LightSites) -> dict[str, list[int]]:
    """Return what every site was told of its ledger when it was asked to train, from the first round of the run on."""
    # Besides training a site is asked who it is (round 0), and last in every round to evaluate.
    return {
        site: [item.ledger_entries for item in asked if item.server_round][::2] for site, asked in grid.told.items()
    }


def test_each_site_is_told_how_many_entries_its_ledger_is_known_to_have(tmp_path):
    grid = run_rounds(light_plan(tmp_path, 2, rounds=3), sites=Spending)
    assert told(grid) == {"s01": [0, 1, 2], "s02": [0, 1, 2]}


def test_a_resumed_run_remembers_what_sites_have_spent(tmp_path):
    run_rounds(light_plan(tmp_path, 2, rounds=2), sites=Spending)
    grid = run_rounds(light_plan(tmp_path, 2, rounds=3, resume=True), sites=Spending)
    assert told(grid) == {"s01": [2], "s02": [2]}


def test_a_ledger_that_shrank_or_is_not_told_of_is_remembered_as_it_was():
    roster = Roster()
    for entries in (3, 1, 0):
        report = Report(run="r", server_round=1, site="a", ledger_entries=entries)
        roster.note_ledgers([SiteOutcome("a", "ok", report=report), SiteOutcome("b", "late")])
    assert roster.ledgers == {"a": 3}


def test_ledgers_come_back_from_the_checkpoint_whatever_their_site_is_called():
    kept = Carried(ledgers={"a/b": 7, "ledger": 1})
    assert Carried.from_tensors(kept.to_tensors()).ledgers == {"a/b": 7, "ledger": 1}


@pytest.mark.parametrize("entries", [-1, 2**31])
def test_a_number_of_entries_that_no_ledger_has_is_no_report(entries):
    with pytest.raises(ValueError, match="ledger_entries"):
        Report(run="r", server_round=1, site="a", ledger_entries=entries)
