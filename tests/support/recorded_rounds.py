"""A run named trial of one site, and its rounds, for tests of what stands in the record."""

from __future__ import annotations

from pathlib import Path

import torch

from popmi_core.config import parse_config
from popmi_core.fusion import Fused
from popmi_core.protocol import Assignment, Report, RunPlan
from server.results import Evaluation, MatchedUpdate, RoundResult, SiteOutcome
from server.rounds.record import RunRecorder, open_writer
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
