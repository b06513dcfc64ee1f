"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import logging

from rich.console import Console
from rich.progress import Progress as Bars

from popmi_core.cli.progress import _Terminal
from popmi_core.protocol import Progress


def emit(handler, text="", progress=None, level=logging.INFO):
    record = logging.LogRecord("popmi.round", level, "f", 1, text, None, None)
    if progress is not None:
        record.progress = progress
    handler.emit(record)


def terminal() -> tuple[_Terminal, io.StringIO]:
    said = io.StringIO()
    return _Terminal(Bars(console=Console(file=said, width=100))), said


def test_bars_follow_rounds_and_sites_and_lines_scroll_above():
    handler, said = terminal()
    emit(handler, "2 site(s) joined", Progress(kind="joined", rounds=5, notes=("a", "b")))
    emit(handler, "a: train", Progress(kind="site", site="a", phase="train"), logging.DEBUG)
    rounds, sites = handler.bars.tasks
    assert (rounds.completed, rounds.total) == (0, 5)
    assert (sites.description, sites.completed, sites.total) == ("training: a", 1, 2)
    emit(handler, "b: evaluate", Progress(kind="site", site="b", phase="evaluate"), logging.DEBUG)
    assert (sites.description, sites.completed) == ("evaluating: b", 1)
    emit(handler, "round 1/5: AUROC 0.7", Progress(kind="round", server_round=1, rounds=5))
    assert rounds.completed == 1
    assert "round 1/5: AUROC 0.7" in said.getvalue()
    assert "a: train" not in said.getvalue()


def test_before_anyone_joined_no_total_is_claimed():
    handler, _ = terminal()
    emit(handler, "", Progress(kind="site", site="a", phase="query"), logging.DEBUG)
    assert handler.bars.tasks[1].total is None


def test_warnings_are_shown_and_markup_is_not_obeyed():
    handler, said = terminal()
    emit(handler, "[red]a: 3 rows skipped[/red]", level=logging.WARNING)
    assert "[red]a: 3 rows skipped[/red]" in said.getvalue()
