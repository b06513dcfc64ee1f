"""What sites tell beside figures on its way into the record: quarantined if wrong, kept if right, told in the diary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from recorded_rounds import MODEL, done, plan

from popmi_core.matching.moves import LayerTold
from popmi_core.measure import TurnedShares, TurnedTold, TurningAsk
from popmi_core.metrics import summarise_scores
from popmi_core.metrics.confusions import confusion_to_tell
from popmi_core.protocol import JSON_KEY, REPORT, SCORES_PREFIX, Report
from server.replies import Expected
from server.results import MatchedUpdate
from server.roster import Roster
from server.rounds.evaluate import collect
from server.rounds.record import RunRecorder, open_writer
from server.store import RunReader

ASK = TurningAsk(angles=2, images=20, lee_images=8)
SHARES = TurnedShares(total_variation=(0.0, 0.25), flips=(0.0, 0.5), accuracy=(1.0, 0.5))
TURNED = TurnedTold(num_images=20, figures=SHARES, floor=SHARES, note="layers were not followed")


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def judged(**changes) -> Message:
    rng = np.random.default_rng(0)
    target = np.arange(60) % 2
    scores = rng.dirichlet((1, 1), 60)
    summary = summarise_scores(scores, target)
    told = {"confusion": {"val": confusion_to_tell(scores, target, summary)}, "turned": TURNED, **changes}
    report = Report(run="trial", server_round=1, site="a", split_sizes={"val": 60}, **told)
    question = Message(RecordDict(), 7, "evaluate")
    question.metadata.__dict__["_message_id"] = "m-a"
    scored = ArrayRecord({name: Array(array) for name, array in summary.to_arrays().items()})
    records = {REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()}), f"{SCORES_PREFIX}val": scored}
    return Message(RecordDict(records), reply_to=question)


def collected(message: Message, turning: TurningAsk | None = ASK):
    expected = Expected("trial", 1, {}, {"m-a": "a"})
    return collect([message], expected, ("val",), num_classes=2, turning=turning)


def test_what_came_with_an_evaluation_can_be_read_back(tmp_path):
    evaluation, (told,) = collected(judged())
    assert told.outcome == "ok"
    round_ = replace(done(1), evaluation=evaluation, similarity={"sites": ["a"], "cosine": [[1.0]], "norms": [0.5]})
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.begin_round(1)
        recorder.end_round(round_, MODEL, {})
    with RunReader(tmp_path / "record.sqlite") as reader:
        rows = {(row.scope, row.split, row.kind): row.value for row in reader.details(1)}
        diary = [event.text for event in reader.events(1)]
    assert rows.keys() == {
        *((scope, "val", kind) for scope in ("a", "global") for kind in ("calibration", "confusion", "rotation")),
        ("global", "train", "similarity"),
    }
    assert rows["a", "val", "rotation"]["angles"] == [0.0, 180.0]
    assert rows["a", "val", "confusion"]["classes"] == ["mel", "nv"]
    assert "a: layers were not followed" in diary


@pytest.mark.parametrize(
    ("change", "turning", "why"),
    [
        ({}, None, "nobody asked"),
        ({"confusion": {"val": ((9,),)}}, ASK, "the confusion table of split val has"),
        ({"confusion": {"val": ((29, 1), (None, None))}}, ASK, "the confusion table of split val has"),
        ({"turned": TURNED.model_copy(update={"num_images": 21})}, ASK, "21 images were turned"),
    ],
)
def test_what_was_not_asked_so_puts_the_site_aside(change, turning, why):
    evaluation, (told,) = collected(judged(**change), turning)
    assert told.outcome == "quarantined"
    assert why in told.reason
    assert (evaluation.sites, evaluation.turned) == ({}, {})


def test_a_site_of_an_earlier_version_tells_none_of_it_and_is_no_fault():
    evaluation, (told,) = collected(judged(confusion={}, turned=None))
    assert told.outcome == "ok"
    assert evaluation.tables == {"val": {"a": ()}}
    assert evaluation.turned == {}


def test_how_far_layers_were_moved_stands_in_the_record(tmp_path):
    moves = LayerTold({"stream": 12.5}, {"mlp": 3}, {"stream": 32, "mlp": 64})
    update = MatchedUpdate("a", {}, 7, {"stream": 0.5, "mlp": 0.25}, {"stream": False, "mlp": False}, moves=moves)
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.begin_round(1)
        recorder.end_round(replace(done(1), matched=[update]), MODEL, {})
    with RunReader(tmp_path / "record.sqlite") as reader:
        rows = {row.layer: (row.angle, row.moved, row.units) for row in reader.matches(1)}
    assert rows == {"stream": (12.5, None, 32), "mlp": (None, 3, 64)}


def test_what_sites_told_on_joining_is_in_round_0_and_stays_when_others_come(tmp_path):
    first = Report(run="trial", server_round=0, site="a", popmi="0.1.0", class_table={"val": (7, 8)})
    roster = Roster(nodes={"a": 1}, reports={"a": first})
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.joined(roster)
        roster.reports["b"] = Report(run="trial", server_round=0, site="b")
        recorder.joined(roster)
        recorder.begin_round(1)
    with RunReader(tmp_path / "record.sqlite") as reader:
        joined = {row.scope: row.value["popmi"] for row in reader.details(1, kind="joined", server_round=0)}
        (counts,) = reader.details(1, kind="classes")
    assert joined == {"a": "0.1.0", "b": ""}
    assert counts.value == {"classes": ["mel", "nv"], "counts": [7, 8], "min_cell": 5}


def test_the_loss_of_training_is_not_replaced_by_that_of_judging_training_images(tmp_path):
    evaluation = replace(done(1).evaluation)
    evaluation.sites = {"a": {"train": {"nll": 0.1, "auroc": 0.9}}}
    with open_writer(plan(tmp_path)) as writer:
        recorder = RunRecorder.open(plan(tmp_path), writer)
        recorder.begin_round(1)
        recorder.end_round(replace(done(1), evaluation=evaluation), MODEL, {})
    with RunReader(tmp_path / "record.sqlite") as reader:
        figures = {row.name: row.value for row in reader.metrics(1, split="train", scope="a")}
    assert figures == {"nll": 1.25, "auroc": 0.9}
