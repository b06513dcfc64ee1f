"""What was read of a run is read again only when the run has changed, and once for all who ask."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from server.dashboard.remembered import Remembered
from server.store import RunReader, RunSummary


@pytest.fixture
def run(tmp_path: Path, believable: ModuleType) -> RunSummary:
    believable.write_run(tmp_path / "record.sqlite", rounds=1)
    with RunReader(tmp_path / "record.sqlite") as reader:
        return reader.run()


def test_a_run_that_did_not_change_is_not_read_again(run: RunSummary) -> None:
    kept, made = Remembered[int](), iter(range(10))
    assert [kept.get("a", run, lambda: next(made)) for _ in range(3)] == [0, 0, 0]
    assert kept.get("a", replace(run, revision=run.revision + 1), lambda: next(made)) == 1
    assert kept.get("a", replace(run, created=run.created + 1), lambda: next(made)) == 2


def test_many_who_ask_at_once_wait_for_one_reading(run: RunSummary) -> None:
    kept, made, begin = Remembered[int](), list[int](), threading.Barrier(8)

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return len(made)

    def ask(_: int) -> int:
        begin.wait()
        return kept.get("a", run, make)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {1}


def test_a_reading_that_failed_is_tried_again(run: RunSummary) -> None:
    kept = Remembered[int]()

    def broken() -> int:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        kept.get("a", run, broken)
    assert kept.get("a", run, lambda: 1) == 1


def test_only_so_many_runs_are_kept(run: RunSummary) -> None:
    kept, made = Remembered[str](most=2), list[str]()
    for key in ("a", "b", "a", "c", "a", "b"):
        kept.get(key, run, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "b"]
