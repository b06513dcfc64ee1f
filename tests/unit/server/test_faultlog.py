"""Faults of a run in the server's audit log (server/faultlog.py)."""

from __future__ import annotations

import pytest

from popmi_core.audit import AuditLog, verify_log
from popmi_core.config import parse_config
from popmi_core.errors import RunError
from popmi_core.protocol import AUDIT_FILE, Report, RunPlan
from server.faultlog import LONGEST, FaultLog
from server.results import Evaluation, RoundResult, SiteOutcome

MODEL = object()


def at_once(action):
    return action()


def log_of(home, **changes):
    plan = RunPlan(
        run="first", config=parse_config({}), folder="f", data_name="skin", phantom=False, classes=("x", "y"),
        lineup=(), **{"names": ("a", "b"), "sites_file": str(home / "sites.json"), **changes},
    )  # fmt: skip
    return FaultLog(plan, at_once)


def lines(home):
    verify_log(home / AUDIT_FILE)
    return [(item.event, item.details) for item in AuditLog(home / AUDIT_FILE).entries()]


def done(train=(), evaluate=(), fused=MODEL, note=""):
    return RoundResult(
        server_round=4, seconds=1.0, seconds_combine=0.1, train=list(train), evaluate=list(evaluate), matched=[],
        fused=fused, note=note, evaluation=Evaluation(),
    )  # fmt: skip


@pytest.mark.parametrize("outcome", ["quarantined", "failed", "late", "unreachable"])
def test_every_site_that_was_put_aside_is_noted_with_round_phase_and_reason(tmp_path, outcome):
    log_of(tmp_path).round(done([SiteOutcome("a", "ok"), SiteOutcome("b", outcome, "'w' holds 3 NaN")]))
    assert lines(tmp_path) == [
        (
            f"site.{outcome}",
            {
                "who": "server app",
                "run": "first",
                "site": "b",
                "round": 4,
                "phase": "train",
                "reason": "'w' holds 3 NaN",
            },
        )
    ]


def test_a_site_whose_budget_is_spent_is_noted_in_the_round_in_which_it_says_so(tmp_path):
    log, report = log_of(tmp_path), Report(run="first", server_round=4, site="b", error="spent", stopped=True)
    log.round(done([SiteOutcome("b", "stopped", "spent", report=report)]))
    log.round(done([SiteOutcome("b", "stopped", "spent")]))
    assert [event for event, _ in lines(tmp_path)] == ["site.stopped"]


def test_a_round_without_a_model_is_noted_with_its_reason(tmp_path):
    log_of(tmp_path).round(done(evaluate=[SiteOutcome("a", "late", "x")], fused=None, note="void: 0 usable update(s)"))
    assert [event for event, _ in lines(tmp_path)] == ["site.late", "round.void"]
    assert lines(tmp_path)[1][1]["reason"] == "void: 0 usable update(s)"


def test_a_site_that_is_not_let_in_is_noted_once_for_each_reason(tmp_path):
    log = log_of(tmp_path)
    for refused in ({"a": "no label"}, {"a": "no label", "b": "a phantom"}, {"b": "no label"}):
        log.refused(refused)
    assert [(item["site"], item["reason"]) for _, item in lines(tmp_path)] == [
        ("a", "no label"), ("b", "a phantom"), ("b", "no label"),
    ]  # fmt: skip


def test_a_site_cannot_fill_the_log_with_its_reason(tmp_path):
    log_of(tmp_path).note("site.failed", "x" * 10_000, site="a")
    assert len(lines(tmp_path)[0][1]["reason"]) == LONGEST


def test_a_simulation_notes_nothing(tmp_path):
    log_of(tmp_path, sites_file=None).note("site.failed", "x", site="a")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_holds_the_round_up(tmp_path):
    (tmp_path / AUDIT_FILE).mkdir()
    with pytest.raises(RunError, match="cannot write audit log"):
        log_of(tmp_path).note("site.failed", "x", site="a")


def test_what_is_owed_waits_for_room_in_its_order_and_holds_nothing_up(tmp_path):
    log = log_of(tmp_path)
    (tmp_path / AUDIT_FILE).mkdir()
    log.owe("run.paused", "x" * 10_000)
    log.owe("run.resumed-by-itself", "y", seconds=3.0)
    log.settle()
    (tmp_path / AUDIT_FILE).rmdir()
    log.settle()
    log.settle()
    (paused, first), (resumed, second) = lines(tmp_path)
    assert (paused, resumed, second["seconds"]) == ("run.paused", "run.resumed-by-itself", 3.0)
    assert len(first["reason"]) == LONGEST


def test_a_simulation_owes_nothing(tmp_path):
    log = log_of(tmp_path, sites_file=None)
    log.owe("run.paused", "x")
    assert not log._owed
    assert list(tmp_path.iterdir()) == []


def test_from_when_on_a_site_is_left_out_and_asked_again_is_noted_once(tmp_path):
    log, out = log_of(tmp_path), {"b": "excluded by the operator: moves house"}
    for told in (out, out, {}, {}):
        log.excluded(told)
    assert [(event, told["site"], told["reason"]) for event, told in lines(tmp_path)] == [
        ("site.left_out", "b", "excluded by the operator: moves house"),
        ("site.asked_again", "b", "the operator includes it again"),
    ]
