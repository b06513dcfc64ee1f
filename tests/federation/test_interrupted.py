"""Runs that end early tell why, and go on from where they were without losing or inventing anything."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from client.app import app as client_app
from popmi_core.cli.lineup import CONFIG_FILE, held, plan_run, reopen_run
from popmi_core.cli.summary import has_finished, summarise
from popmi_core.config import parse_config
from popmi_core.errors import ConfigError, DataError, RunError, UpdateError
from popmi_core.fusion import ServerOptimizer
from popmi_core.protocol import PLAN_FILE
from server.control.records import Standing
from server.dashboard import report as dashboard_report
from server.dashboard.health import judge
from server.store import RunWriter

CONTROL = {"strategy": "fedavg", "local": {"objective": "control_variates", "batch_size": 32}}


def broken(message, context):
    """A client app whose every site fails to train."""
    return None if message.metadata.message_type == "train" else client_app(message, context)


def interrupted(kind, server_round):
    def app(message, context):
        if message.metadata.message_type == kind and message.metadata.group_id == str(server_round):
            raise KeyboardInterrupt
        return client_app(message, context)

    return app


def test_a_run_that_failed_over_its_sites_fails_again_when_resumed_and_never_reads_finished(federation):
    plan = federation.plan(rounds=1)
    for again in (plan, reopen_run(Path(plan.folder))):
        with pytest.raises(RunError, match="no model came of 1 round"):
            federation.run(again, broken)
        assert summarise(Path(plan.folder)).status == "failed"


def test_a_run_that_failed_over_its_sites_asks_them_again_once_they_are_mended(federation):
    whole = federation.plan("whole", rounds=2)
    federation.run(whole)
    plan = federation.plan("mended", rounds=2)
    with pytest.raises(RunError, match="no model came of 2 round"):
        federation.run(plan, broken)
    federation.run(reopen_run(Path(plan.folder)))
    assert summarise(Path(plan.folder)).status == "finished"
    assert federation.model_bytes(plan, 2) == federation.model_bytes(whole, 2)


def test_a_run_stopped_after_a_void_round_does_not_count_it_as_a_model(federation):
    plan = federation.plan(rounds=2)

    def app(message, context):
        return (broken if message.metadata.group_id == "1" else interrupted("train", 2))(message, context)

    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, app)
    with pytest.raises(RunError, match="no model came of"):
        federation.run(reopen_run(Path(plan.folder)), broken)
    assert summarise(Path(plan.folder)).status == "failed"


def test_too_few_usable_updates_are_told_as_such_and_not_as_bad_updates(federation):
    plan = federation.plan(rounds=1, sites=["phantom_polarised", "phantom_ruler"], min_sites=2)

    def app(message, context):
        site = context.node_config["site"]
        return (broken if site == "phantom_ruler" else client_app)(message, context)

    with pytest.raises(RunError, match=r"void: 1 usable update\(s\), at least 2 needed; phantom_ruler: the site's app"):
        federation.run(plan, app)


def test_more_sites_than_there_are_cannot_be_asked_for(federation):
    with pytest.raises(ConfigError, match=r"min_sites is 4, but the run has 3 site\(s\)"):
        federation.plan(min_sites=4)


def test_control_variates_of_a_round_stopped_after_training_are_not_used_twice(federation):
    whole = federation.plan("whole", rounds=3, **CONTROL)
    federation.run(whole)
    plan = federation.plan("pieces", rounds=3, **CONTROL)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted("evaluate", 2))
    federation.run(reopen_run(Path(plan.folder)))
    assert federation.model_bytes(plan, 3) == federation.model_bytes(whole, 3)


def test_a_moved_run_takes_along_what_its_sites_keep(federation):
    plan = federation.plan("here", rounds=2, **CONTROL)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted("train", 2))
    moved = federation.folder / "there"
    shutil.move(plan.folder, moved)
    again = reopen_run(moved)
    assert {Path(item.state).parent for item in again.lineup} == {moved.resolve() / "sites"}
    federation.run(again)
    whole = federation.plan("whole", rounds=2, **CONTROL)
    federation.run(whole)
    assert not Path(plan.folder).exists()
    assert federation.model_bytes(again, 2) == federation.model_bytes(whole, 2)


def test_a_run_killed_before_its_record_was_begun_is_resumed_from_the_start(federation):
    plan = federation.plan(rounds=1)
    federation.run(reopen_run(Path(plan.folder)))
    assert summarise(Path(plan.folder)).status == "finished"


def test_a_run_killed_between_its_last_round_and_its_end_needs_no_site_to_be_closed(federation, monkeypatch):
    plan = federation.plan(rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr("server.app.ending", lambda strategy, plan: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            federation.run(plan)
    assert not has_finished(Path(plan.folder))

    def nobody(message, context):
        raise AssertionError("no site should be asked")

    federation.run(reopen_run(Path(plan.folder)), nobody)
    assert has_finished(Path(plan.folder))


def test_two_processes_cannot_be_at_one_run(federation):
    plan = federation.plan()
    with (
        held(Path(plan.folder)),
        pytest.raises(RunError, match="another process is at this run"),
        held(Path(plan.folder)),
    ):
        pass


def test_a_disk_that_fills_while_a_run_is_described_leaves_no_half_plan(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    config = parse_config({"data": {"source": "phantom"}})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match="No space left on device"):
            plan_run(config, tmp_path / "run")
    assert not (tmp_path / "run" / PLAN_FILE).exists()
    plan_run(config, tmp_path / "run")
    assert (tmp_path / "run" / CONFIG_FILE).exists()


def test_a_file_in_the_place_of_the_run_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="it is a file"):
        plan_run(parse_config({"data": {"source": "phantom"}}), tmp_path / "run")


def test_an_overflowing_global_model_voids_the_round_and_is_never_sent(federation, monkeypatch):
    step = ServerOptimizer.step

    def overflow(self, previous, fused):
        moved = step(self, previous, fused)
        return {name: tensor * float("inf") for name, tensor in moved.items()}

    monkeypatch.setattr(ServerOptimizer, "step", overflow)
    plan = federation.plan(rounds=1, strategy="fedadam")
    with pytest.raises(RunError, match="holds NaN or infinity"):
        federation.run(plan)


def test_a_global_model_that_cannot_be_matched_to_voids_the_round_instead_of_ending_the_run(federation, monkeypatch):
    def unmatched(*args, **kwargs):
        raise UpdateError("the reference: no basis")

    monkeypatch.setattr("server.strategy.match_updates", unmatched)
    plan = federation.plan(rounds=1)
    with pytest.raises(RunError, match="void: the reference: no basis"):
        federation.run(plan)


def test_an_unusable_external_set_costs_its_figures_and_not_the_run(federation, monkeypatch):
    def unreadable(*args, **kwargs):
        raise DataError("site external: labels.csv is empty.")

    monkeypatch.setattr("server.rounds.evaluate.load_site", unreadable)
    plan = federation.plan(rounds=1).model_copy(update={"external": "/nowhere"})
    federation.run(plan)
    assert summarise(Path(plan.folder)).status == "finished"
    with federation.read(plan) as reader:
        assert any("no figures on the external test set" in row.text for row in reader.events(1))


def test_an_external_set_without_images_is_said_to_be_empty(federation):
    plan = federation.plan(rounds=1).model_copy(update={"external": "phantom:phantom_slide"})
    monkey = pytest.MonkeyPatch()
    from popmi_core.data import load_site

    monkey.setattr(
        "server.rounds.evaluate.load_site", lambda *args, **kwargs: load_site(*args, **{**kwargs, "phantom_images": 60})
    )
    federation.run(plan)
    monkey.undo()
    with federation.read(plan) as reader:
        assert any("external test set has no image" in row.text for row in reader.events(1))


def test_a_report_that_cannot_be_drawn_does_not_fail_the_run(federation, monkeypatch):
    def broken_view(*args, **kwargs):
        raise IndexError("no chart")

    monkeypatch.setattr(dashboard_report, "view_run", broken_view)
    plan = federation.plan(rounds=1)
    federation.run(plan)
    assert summarise(Path(plan.folder)).status == "finished"


def test_a_run_that_could_not_be_recorded_ends_with_the_first_cause(federation, monkeypatch):
    def impossible(self, *args, **kwargs):
        raise RunError("record x cannot be written: disk full")

    monkeypatch.setattr("server.store.writer.RunWriter.start_run", impossible)
    with pytest.raises(RunError, match="disk full"):
        federation.run(federation.plan(rounds=1))


def test_bytes_down_are_what_was_sent_and_nothing_where_nothing_was(federation):
    plan = federation.plan(rounds=1, **CONTROL)
    federation.run(plan)
    plain = federation.plan("plain", rounds=1, strategy="fedavg")
    federation.run(plain)

    def down(plan, phase):
        with federation.read(plan) as reader:
            (sent,) = {row.bytes_down for row in reader.sites(1) if row.phase == phase}
        return sent

    # In the first round the server's control variate is still empty: the same tensors go down, with other words.
    tensors = sum(array.nbytes for array in load_file(Path(plan.folder) / "models" / "round-001.safetensors").values())
    for sent in (down(plan, "train"), down(plan, "evaluate"), down(plain, "train")):
        assert tensors < sent < tensors + 30_000
    assert abs(down(plan, "train") - down(plan, "evaluate")) < 100


def test_the_local_strategy_never_offers_its_start_as_the_model(federation):
    plan = federation.plan(rounds=1, strategy="local")
    federation.run(plan)
    card = (Path(plan.folder) / "models" / "round-001.md").read_text(encoding="utf-8")
    assert "no common model" in card
    assert summarise(Path(plan.folder)).model is None


def locked(times, monkeypatch):
    """Let the record be locked for the first ``times`` tries to call the run finished."""
    monkeypatch.setattr("server.patience.LOOK_AGAIN", 0.0)
    left, finish = [times], RunWriter.finish_run

    def finish_run(self, status, reason=None):
        left[0] -= status == "finished"
        if status == "finished" and left[0] >= 0:
            raise RunError("record r.sqlite cannot be written: database is locked. Check free space and rights.")
        finish(self, status, reason)

    monkeypatch.setattr(RunWriter, "finish_run", finish_run)


def test_a_record_that_is_locked_at_the_end_does_not_fail_a_run_that_is_done(federation, monkeypatch):
    locked(3, monkeypatch)
    plan = federation.plan(rounds=1).model_copy(update={"patience": 60.0})
    federation.run(plan)
    assert has_finished(Path(plan.folder))


def test_a_run_that_could_not_be_called_finished_fell_and_is_gone_on_with(federation, monkeypatch):
    plan = federation.plan(rounds=1)
    with monkeypatch.context() as patch:
        locked(1, patch)
        with pytest.raises(RunError, match="database is locked"):
            federation.run(plan)
    told = summarise(Path(plan.folder))
    assert Standing(status=told.status, reason=told.reason).fell
    federation.run(reopen_run(Path(plan.folder)))
    assert has_finished(Path(plan.folder))


def test_a_run_that_ends_in_void_rounds_says_so_where_it_says_finished(federation):
    plan = federation.plan(rounds=3)

    def app(message, context):
        return (client_app if message.metadata.group_id in ("0", "1") else broken)(message, context)

    federation.run(plan, app)
    told = summarise(Path(plan.folder))
    assert told.status == "finished"
    assert re.match(r"no new model came of the last 2 round\(s\) \(round 2: void: .*; round 3: void: ", told.reason)
    with federation.read(plan) as reader:
        run, rounds, sites = reader.run(), reader.rounds(1), reader.sites(1)
    shown = judge(run, rounds, sites, run.heartbeat)
    assert (shown.word, shown.tone) == ("finished, degraded", "warn")
    assert told.reason in shown.detail
