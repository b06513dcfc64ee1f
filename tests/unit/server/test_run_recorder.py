"""A round on disk: what stands in the record is what happened (server/rounds/record.py)."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from recorded_rounds import MODEL, done, plan, recorded

from popmi_core.checkpoints import load_state
from popmi_core.errors import RunError
from popmi_core.protocol import Progress, Report
from server import patience
from server.exchange import Late
from server.results import Evaluation, pooled_figures
from server.roster import Roster
from server.rounds import record
from server.rounds.record import CARRIED_ROUNDS, RunRecorder, _short, open_writer
from server.store import RunReader


def test_a_round_s_figures_gains_bytes_and_epsilon_can_be_read_back(tmp_path):
    with recorded(tmp_path, done(1)) as reader:
        (row,) = reader.rounds(1)
        sites = {(item.site, item.phase): item for item in reader.sites(1)}
        figures = {(item.scope, item.split, item.name): item.value for item in reader.metrics(1)}
    assert (row.outcome, row.seconds_total, row.seconds_train, row.seconds_fuse) == ("ok", 1.0, 0.5, 0.1)
    assert row.notes["weights"] == {"a": 1.0}
    trained = sites["a", "train"]
    assert (trained.num_examples, trained.bytes_up, trained.bytes_down, trained.epsilon) == (31, 11, 22, 0.7)
    assert (sites["b", "train"].outcome, sites["b", "train"].reason) == ("quarantined", "'w' holds 3 NaN")
    assert figures["a", "val", "nll"] == 0.4
    assert figures["a", "val", "auroc"] is None
    assert figures["a", "train", "nll"] == 1.25


def test_the_model_on_disk_is_the_one_the_record_names_and_carries_its_card(tmp_path):
    with recorded(tmp_path, done(1)) as reader:
        digest = reader.rounds(1)[0].model_sha256
    state, notes = load_state(tmp_path / "models" / "round-001.safetensors", sha256=digest)
    assert torch.equal(state["w"], MODEL["w"])
    assert '"round": 1' in notes["card"]
    assert digest in (tmp_path / "models" / "round-001.md").read_text(encoding="utf-8")


def test_only_the_states_a_resume_can_need_are_kept(tmp_path):
    last = CARRIED_ROUNDS + 2
    recorded(tmp_path, *(done(server_round) for server_round in range(1, last + 1))).close()
    kept = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert kept == [f"round-{server_round:03d}.safetensors" for server_round in range(3, last + 1)]
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == last


def test_resuming_goes_on_after_the_last_round_and_knows_whether_there_is_a_model(tmp_path):
    recorded(tmp_path, done(1, fused=False)).close()
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        assert (recorder.last_round, recorder.has_model) == (1, False)
        state, carried = recorder.last_state()
    assert torch.equal(state["w"], MODEL["w"])
    assert int(carried["optimizer/round"]) == 1


def test_a_failed_run_goes_back_to_its_last_round_with_a_model(tmp_path):
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        for item in (done(1), done(2, fused=False)):
            recorder.begin_round(item.server_round)
            recorder.end_round(item, MODEL, {})
        writer.finish_run("failed", "no model")
    again = plan(tmp_path, resume=True)
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        assert (recorder.last_round, recorder.has_model) == (1, True)


def test_refused_sites_and_skipped_rows_are_told(tmp_path):
    roster = Roster(
        nodes={"a": 1},
        reports={"a": Report(run="trial", server_round=0, site="a", skipped_rows=4)},
        refused={"b": "DataError: no labels.csv"},
    )
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.joined(roster)
        recorder.begin_round(1)
        recorder.end_round(done(1), MODEL, {})
    with RunReader(tmp_path / "record.sqlite") as reader:
        said = [row.text for row in reader.events(1)]
        refused = [row for row in reader.sites(1) if row.site == "b"]
    assert "b could not join: DataError: no labels.csv" in said
    assert "a: 4 unusable row(s) skipped" in said
    assert refused


def test_whoever_draws_the_run_is_told_of_the_round_and_its_troubles(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="popmi.round"):
        recorded(tmp_path, done(2)).close()
    told = [record.progress for record in caplog.records if hasattr(record, "progress")][-1]
    assert isinstance(told, Progress)
    assert (told.kind, told.server_round, told.rounds) == ("round", 2, 3)
    assert "b: train quarantined: 'w' holds 3 NaN" in told.notes


def test_a_run_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="cannot make run folder"):
        open_writer(plan(tmp_path / "run"))


def test_means_over_all_images_are_weighted_and_leave_out_what_is_not_told():
    from popmi_core.metrics import pool_summaries, summarise_scores

    summary = summarise_scores([[0.9, 0.1]] * 20 + [[0.2, 0.8]] * 20, [0] * 20 + [1] * 20)
    evaluation = Evaluation(
        sites={
            "a": {"val": {"nll": 1.0, "num_examples": 30.0}},
            "b": {"val": {"nll": 2.0, "num_examples": 10.0}},
            "c": {"val": {"num_examples": 2.0}},
        },
        pooled={"val": pool_summaries([summary])},
    )
    figures = pooled_figures(evaluation)["val"]
    assert figures["nll"] == 1.25
    assert math.isnan(figures["rotation_consistency"])
    value, lower, upper = figures["accuracy"]
    assert lower <= value <= upper


def test_a_figure_that_could_be_anything_is_told_as_its_bounds():
    assert _short((0.007, 0.0, 1.0)) == "between 0.00 and 1.00"
    assert _short((0.7, 0.6, 0.8)) == "0.700"
    assert (_short(None), _short(math.nan), _short((math.nan, 0.0, 1.0))) == ("undefined",) * 3


def full_for(times, monkeypatch):
    """Let the disk be full for the first ``times`` models that are written."""
    left = [times]
    write = record.save_state

    def full(path, *rest):
        left[0] -= 1
        if left[0] >= 0:
            raise RunError(f"cannot write {path}: No space left on device.")
        return write(path, *rest)

    monkeypatch.setattr(record, "save_state", full)
    monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)


def test_a_full_disk_pauses_the_run_and_the_round_is_whole_afterwards(tmp_path, monkeypatch):
    full_for(3, monkeypatch)
    patient = plan(tmp_path, patience=60.0)
    with open_writer(patient) as writer:
        recorder = RunRecorder.open(patient, writer)
        recorder.begin_round(1)
        recorder.end_round(done(1), MODEL, {})
    with RunReader(tmp_path / "record.sqlite") as reader:
        assert [row.outcome for row in reader.rounds(1)] == ["ok"]
        assert len(reader.sites(1)) == 3
        assert [row.text[:10] for row in reader.events(1) if "No space left" in row.text] == ["paused for"]


def test_without_patience_a_full_disk_is_an_error_and_the_round_stays_open(tmp_path, monkeypatch):
    full_for(1, monkeypatch)
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.begin_round(1)
        with pytest.raises(RunError, match="No space left"):
            recorder.end_round(done(1), MODEL, {})
        with RunReader(tmp_path / "record.sqlite") as reader:
            assert [row.outcome for row in reader.rounds(1)] == ["open"]


def test_sites_of_a_real_federation_that_are_not_there_are_told_in_every_round(tmp_path):
    expected = plan(tmp_path, names=("a", "b", "c"))
    with open_writer(expected) as writer:
        recorder = RunRecorder.open(expected, writer)
        recorder.joined(Roster(nodes={"a": 1}, refused={"b": "DataError: no labels.csv"}))
        recorder.begin_round(1)
        with RunReader(tmp_path / "record.sqlite") as reader:
            told = {row.site: (row.outcome, row.reason) for row in reader.sites(1)}
    assert told == {"b": ("failed", "DataError: no labels.csv"), "c": ("unreachable", "not on line")}


def test_who_waits_is_seen_before_the_first_round_begins_and_no_more_once_it_has_joined(tmp_path):
    waits = "waiting for approval of code 0123456789ab: at the site, `popmi site approve`"
    expected = plan(tmp_path, names=("a", "b"))

    def told():
        with RunReader(tmp_path / "record.sqlite") as reader:
            assert reader.rounds(1) == ()
            return {row.site: (row.server_round, row.outcome, row.reason) for row in reader.sites(1)}

    with open_writer(expected) as writer:
        recorder = RunRecorder.open(expected, writer)
        recorder.joined(Roster(nodes={"a": 1}, refused={"b": waits}))
        assert told() == {"b": (1, "failed", waits)}
        recorder.joined(Roster(nodes={"a": 1, "b": 2}))
        assert told() == {}


def test_a_full_disk_while_sites_join_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "LOOK_AGAIN", 0.0)
    patient, tries = plan(tmp_path, patience=60.0, names=("a", "b")), []
    with open_writer(patient) as writer:
        recorder, event = RunRecorder.open(patient, writer), writer.event

        def full_once(text, **given):
            tries.append(text)
            if len(tries) == 1:
                raise RunError("record: database or disk is full.")
            event(text, **given)

        monkeypatch.setattr(writer, "event", full_once)
        recorder.joined(Roster(nodes={"a": 1}, refused={"b": "no data"}))
    with RunReader(tmp_path / "record.sqlite") as reader:
        assert "b could not join: no data" in [row.text for row in reader.events(1)]


def test_a_late_answer_stands_in_the_diary(tmp_path):
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.late(Late("b", 3, "train", 41.7))
    with RunReader(tmp_path / "record.sqlite") as reader:
        assert "b answered 42 s after round 3 (train) was closed; not counted" in [r.text for r in reader.events(1)]


def test_a_site_that_read_for_long_is_no_fault(tmp_path):
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.late(Late("b", 0, "query", 380.2))
    with RunReader(tmp_path / "record.sqlite") as reader:
        (row,) = [row for row in reader.events(1) if row.text.startswith("b has read its images, 380 s")]
    assert row.level == "info"


def test_runs_of_one_database_are_told_apart_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("POPMI_DATABASE", str(tmp_path / "all.sqlite"))
    for name in ("first", "second"):
        one = plan(tmp_path / name, names=("a",)).model_copy(update={"run": name})
        with open_writer(one) as writer:
            recorder = RunRecorder.open(one, writer)
            recorder.begin_round(1)
            recorder.end_round(done(1), {"w": torch.full((3,), float(len(name)))}, {})
    again = plan(tmp_path / "first", names=("a",), resume=True).model_copy(update={"run": "first"})
    with open_writer(again) as writer:
        recorder = RunRecorder.open(again, writer)
        assert recorder.last_state()[0]["w"].tolist() == [5, 5, 5]
    assert not (tmp_path / "first" / "record.sqlite").exists()
