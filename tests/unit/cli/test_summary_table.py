"""The table a run ends with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from popmi_core.cli.summary import POOLED_ROW, Summary, print_summary

SUMMARY = Summary(
    run="r",
    status="finished",
    reason=None,
    strategy="opm",
    seed=0,
    data="skin",
    phantom=False,
    rounds=2,
    rounds_planned=2,
    seconds=1.0,
    overhead=0.1,
    split="test",
    classes=7,
    pooled_classes=7,
    figures={"a": {"auroc": 0.7, "ece": None}, POOLED_ROW: {"auroc": 0.8, "balanced_accuracy": 0.007}},
    bounds={"auroc": (0.75, 0.85), "balanced_accuracy": (0.0, 1.0)},
    epsilon={"a": 2.5},
    folder="/runs/[r]",
    model="/runs/[r]/model",
    report="/runs/[r]/report.html",
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_values_undefined_and_missing_figures_are_told_apart(capsys):
    print_summary(SUMMARY)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("│ a ")]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["a", "0.700", "-", "-", "undefined", "-"]
    assert "epsilon spent at a: 2.500" in said
    assert "/runs/[r]/report.html" in said


def test_a_common_figure_that_could_be_anything_is_shown_as_its_bounds(capsys):
    print_summary(SUMMARY)
    said = capsys.readouterr().out
    assert "0.00 to 1.00" in said
    assert "0.007" not in said
    assert "0.800" in said


def test_classes_that_no_site_tells_of_are_counted(capsys):
    print_summary(SUMMARY)
    assert "means over" not in capsys.readouterr().out
    print_summary(replace(SUMMARY, pooled_classes=4))
    assert "means over 4 of 7 classes" in capsys.readouterr().out


def test_a_run_that_did_not_finish_says_why_and_a_phantom_is_called_one(capsys):
    print_summary(replace(SUMMARY, status="stopped", reason="by the operator", phantom=True, model=None))
    said = capsys.readouterr().out
    assert "stopped: by the operator" in said
    assert "skin, a phantom: not patients" in said
    assert "model:" not in said


def test_rounds_that_chose_tell_who_won_and_the_worst_regret(capsys):
    print_summary(SUMMARY)
    assert "rounds won" not in capsys.readouterr().out
    print_summary(replace(SUMMARY, wins={"opm": 4, "average": 1}, regret=0.0123))
    said = capsys.readouterr().out
    assert (
        "rounds won on validation images: opm 4, average 1; at most 0.012 nats worse for one site than its best" in said
    )
