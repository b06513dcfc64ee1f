"""The report is one file: the same figures, no script, no request."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from popmi_core.errors import RunError
from server.dashboard.report import write_report
from server.store import RunReader, RunWriter


def report_of(runs: Path, name: str = "opm-seed0") -> str:
    with RunReader(runs / name / "record.sqlite") as reader:
        return write_report(reader, reader.run().id, runs / name / "report.html").read_text(encoding="utf-8")


def test_a_report_holds_curves_figures_config_environment_and_limits(written: Callable[..., Path]) -> None:
    text = report_of(written(rounds=4))
    for said in ("Curves: validation", "<h3>Test", "local.learning_rate", "packages.torch", "Limits", "phantoms"):
        assert said in text
    # Looked at once, the test split has no curve: its figures stand in the table.
    assert "Curves: test" not in text
    for said in ("no answer within 60 s", "blocks.1.mlp", "04" * 6, "not cryptographic", "undefined"):
        assert said in text
    # ten curves of the validation images and none of the test images, two of the rounds, three of turned images, and
    # the reliability diagram: each has its table
    assert text.count('class="drawn') == text.count("<summary>Table</summary>") == 16
    for said in ("Moved units", "Similarity of the sites' updates", "Lost symmetry by layer", "Confusion, round 4"):
        assert said in text
    assert "hidden" in text


def test_a_report_needs_nothing_from_outside_and_runs_nothing(written: Callable[..., Path]) -> None:
    text = report_of(written(rounds=2))
    assert not re.search(r"<script|<link|<img|<iframe|\ssrc=|\son\w+=|url\(|@import|https?://(?!www\.w3\.org)", text)
    assert "hx-" not in text


def test_the_reports_policy_admits_its_own_style_only(written: Callable[..., Path]) -> None:
    text = report_of(written(rounds=1))
    style = text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text


def test_a_run_without_a_finished_round_has_a_report(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "young"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        writer.finish_run("failed", "no site ever answered")
    text = report_of(tmp_path, "young")
    assert "No round was finished, so there is no curve." in text
    assert "no site ever answered" in text


def test_a_report_that_cannot_be_written_leaves_nothing_behind(written: Callable[..., Path], tmp_path: Path) -> None:
    with RunReader(written(rounds=1) / "opm-seed0" / "record.sqlite") as reader:
        with pytest.raises(RunError, match=r"report .* cannot be written"):
            write_report(reader, 1, tmp_path / "missing" / "report.html")
        (tmp_path / "taken").mkdir()
        with pytest.raises(RunError, match=r"report .* cannot be written"):
            write_report(reader, 1, tmp_path / "taken")
    assert not list(tmp_path.glob(".*.part"))
