"""A round on disk: what stands in the record is what happened (server/rounds/record.py)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch

from popmi_core.checkpoints import load_state
from popmi_core.config import parse_config
from popmi_core.errors import ModelError, RunError
from popmi_core.fusion import Fused
from popmi_core.protocol import Assignment, Progress, Report, RunPlan
from server import patience
from server.exchange import Late
from server.results import Evaluation, MatchedUpdate, RoundResult, SiteOutcome, pooled_figures
from server.roster import Roster
from server.rounds import record
from server.rounds.record import CARRIED_ROUNDS, RunRecorder, _short, open_writer
from server.store import RunReader

MODEL = {"w": torch.ones(3)}


def plan(folder: Path, **changes) -> RunPlan:
    return RunPlan(
        run="trial",
        config=parse_config({"rounds": 3}),
        folder=str(folder),
        data_name="skin",
        phantom=False,
        classes=("mel", "nv"),
        lineup=(Assignment(site="a", data=("/data/a",), state="s"),),
        **changes,
    )


def done(server_round: int, *, fused: bool = True) -> RoundResult:
    report = Report(
        run="trial",
        server_round=server_round,
        site="a",
        num_examples=31,
        seconds=0.5,
        metrics={"train.loss": 1.25},
        epsilon=0.7,
    )
    return RoundResult(
        server_round=server_round,
        seconds=1.0,
        seconds_combine=0.1,
        train=[
            SiteOutcome("a", "ok", bytes_up=11, bytes_down=22, report=report),
            SiteOutcome("b", "quarantined", "'w' holds 3 NaN", bytes_up=12, bytes_down=22),
        ],
        evaluate=[SiteOutcome("a", "ok", bytes_up=3, bytes_down=22, report=report)],
        matched=[MatchedUpdate("a", MODEL, 31, {"blocks.0.mlp": 0.25}, {"blocks.0.mlp": False})],
        fused=Fused(MODEL, {"a": 1.0}, {"all": "plain average"}) if fused else None,
        note="" if fused else "void: 0 usable update(s)",
        evaluation=Evaluation(sites={"a": {"val": {"nll": 0.4, "auroc": None, "num_examples": 9.0}}}),
    )


def recorded(folder: Path, *rounds: RoundResult) -> RunReader:
    with open_writer(plan(folder)) as writer:
        recorder = RunRecorder.open(plan(folder), writer)
        for item in rounds:
            recorder.begin_round(item.server_round)
            recorder.end_round(item, MODEL, {"optimizer/round": torch.tensor(item.server_round)})
        writer.finish_run("finished")
    return RunReader(folder / "record.sqlite")


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
