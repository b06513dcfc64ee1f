"""What is held in memory is what the record says, at every moment, whatever happens to the record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from popmi_core.errors import RunError
from server.dashboard.catalogue import NotFound, open_catalogue
from server.dashboard.held import Held, HeldRuns, hold
from server.dashboard.kept import Kept
from server.store import RunReader, RunWriter


def same(left: Held, right: Held) -> bool:
    """Say whether two hold the same figures, outcomes and rounds; the order of late scopes may differ."""
    if left.figures.keys() != right.figures.keys() or left.rounds != right.rounds or left.run != right.run:
        return False
    for key, block in left.figures.items():
        other = right.figures[key]
        if sorted(block.scopes) != sorted(other.scopes) or not np.array_equal(block.present, other.present):
            return False
        for place, scope in enumerate(block.scopes):
            if not np.array_equal(block.values[place], other.values[other.scopes.index(scope)], equal_nan=True):
                return False
    first, second = left.sites.recent(0), right.sites.recent(0)
    keyed = [{(row.server_round, row.site, row.phase): row for row in rows} for rows in (first, second)]
    return keyed[0] == keyed[1] and left.sites.faults == right.sites.faults


@pytest.fixture
def live(database: str, believable: ModuleType) -> Callable[[], tuple[RunWriter, RunReader]]:
    """Return a function that begins a run in a database of each kind."""

    def begin() -> tuple[RunWriter, RunReader]:
        writer = RunWriter(database, heartbeat=0)
        believable.begin(writer, rounds=9)
        return writer, RunReader(database)

    return begin


def test_a_run_held_round_by_round_equals_one_read_at_once(
    live: Callable[[], tuple[RunWriter, RunReader]], believable: ModuleType
) -> None:
    writer, reader = live()
    with writer:
        held = None
        for number in range(1, 6):
            # Site vienna joins in round 3: a scope that was not there before.
            believable.add_round(writer, number, sites=believable.SITES[: 4 if number < 3 else 5], last=number == 5)
            before, held = held, hold(reader, 1, held)
            assert before is None or before.epoch == held.epoch
        assert held is not None
        assert same(held, hold(reader, 1))
        assert held.done == 5


def test_a_finished_round_is_not_read_again(
    live: Callable[[], tuple[RunWriter, RunReader]], believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = live()
    asked = []
    with writer:
        for number in (1, 2, 3):
            believable.add_round(writer, number)
        held = hold(reader, 1)
        believable.add_round(writer, 4)
        from server.store import columns

        plain = columns.metric_rows
        monkeypatch.setattr(columns, "metric_rows", lambda *given: asked.append(given[3]) or plain(*given))
        held = hold(reader, 1, held)
    assert asked == [3]
    assert held.done == 4


def test_a_record_without_news_is_not_read(
    live: Callable[[], tuple[RunWriter, RunReader]], believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = live()
    with writer:
        believable.add_round(writer, 1)
        held = hold(reader, 1)
        from server.store import columns

        monkeypatch.setattr(columns, "marks", lambda *_: pytest.fail("read again"))
        assert hold(reader, 1, held).figures is held.figures


def test_rounds_taken_back_are_noticed(live: Callable[[], tuple[RunWriter, RunReader]], believable: ModuleType) -> None:
    writer, reader = live()
    with writer:
        for number in (1, 2, 3, 4):
            believable.add_round(writer, number)
        held = hold(reader, 1)
        writer.drop_rounds(after=2)
        back = hold(reader, 1, held)
        assert (back.done, back.epoch != held.epoch) == (2, True)
        assert same(back, hold(reader, 1))
        # Another attempt at a round that had ended.
        believable.add_round(writer, 2, trouble={(2, "msk"): ("failed", "again")})
        again = hold(reader, 1, back)
        assert again.epoch != back.epoch
        assert same(again, hold(reader, 1))
        assert [row.reason for row in again.sites.faults] == ["again"]


def test_an_open_round_shows_outcomes_but_no_figures(
    live: Callable[[], tuple[RunWriter, RunReader]], believable: ModuleType
) -> None:
    writer, reader = live()
    with writer:
        believable.add_round(writer, 1)
        writer.start_round(2)
        writer.record_site(2, "msk", outcome="late", reason="asleep")
        writer.record_metrics(2, "msk", "val", {"auroc": 0.9})
        held = hold(reader, 1)
    assert held.figures["val", "auroc"].present.size == 2
    assert held.sites.last == 2
    assert held.sites.faults[-1].reason == "asleep"


def test_a_run_that_is_gone_is_said(live: Callable[[], tuple[RunWriter, RunReader]]) -> None:
    writer, reader = live()
    with writer, pytest.raises(RunError, match="holds no run 7, which was there a moment ago"):
        hold(reader, 7)


def test_the_least_recently_seen_run_is_let_go_of(written: Callable[..., Path]) -> None:
    for name in ("a", "b", "c"):
        runs = written(name, rounds=1)
    held = HeldRuns(open_catalogue(runs), most=2)
    first = held.get("a")
    assert held.get("a").epoch == first.epoch
    held.get("b")
    held.get("c")
    assert held.get("a").epoch != first.epoch
    assert 0 < held.nbytes < 1_000_000
    with pytest.raises(NotFound):
        held.get("nothing")


def test_a_part_is_made_once_for_all_who_ask_at_the_same_moment() -> None:
    kept, made, barrier = Kept(), [], threading.Barrier(8)

    def make() -> str:
        made.append(1)
        return "text"

    def ask() -> None:
        barrier.wait()
        kept.get("key", make)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_parts_are_let_go_of_when_there_are_too_many() -> None:
    kept = Kept(most_bytes=25)
    for number in range(5):
        kept.get(number, lambda: "ten bytes.")
    assert kept.nbytes == 20
    made: list[int] = []
    kept.get(4, lambda: made.append(4) or "")  # type: ignore[func-returns-value]
    kept.get(0, lambda: made.append(0) or "new bytes.")  # type: ignore[func-returns-value]
    assert made == [0]


def test_a_part_that_fails_is_tried_again() -> None:
    kept = Kept()

    def fail() -> str:
        raise RunError("away")

    with pytest.raises(RunError, match="away"):
        kept.get("key", fail)
    assert kept.get("key", lambda: "back").text == "back"
