"""States are honest, curves mark the worst site, events reach every viewer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from server.dashboard import events, formats
from server.dashboard.blocks import Block
from server.dashboard.catalogue import open_catalogue
from server.dashboard.charts import charts_of, styles_of, worst_site
from server.dashboard.health import judge
from server.dashboard.held import hold
from server.dashboard.svg import draw
from server.dashboard.views import best_round, flatten, view_run
from server.store import MetricRow, RoundRow, RunReader, RunSummary, RunWriter, SiteRow

NOW = 1_000_000.0
RUN = RunSummary(
    1, "run", "running", None, NOW, NOW, None, NOW, 0, "opm", 0, 6, 2, "phantom", True, (), ("a", "b"), {}, {}
)  # fmt: skip


def site(server_round: int, name: str, outcome: str = "ok", phase: str = "train", reason: str | None = None) -> SiteRow:
    return SiteRow(server_round, name, phase, outcome, reason, 10, 1.0, 5, 5, None, 0.5)


def closed(server_round: int, outcome: str = "ok") -> RoundRow:
    return RoundRow(server_round, NOW, NOW, outcome, 1.0, 1.0, 0.0, 0.0, {}, None)


def metric(
    server_round: int, scope: str, value: float | None, split: str = "val", name: str = "auroc", bounds: float = 0.0
) -> MetricRow:
    wide = None if value is None or not bounds else bounds
    return MetricRow(server_round, scope, split, name, value, wide and value - wide, wide and value + wide)


def test_a_run_with_all_sites_well_is_running() -> None:
    assert judge(RUN, [closed(2)], [site(2, "a"), site(2, "b")], NOW).tone == "good"


@pytest.mark.parametrize("outcome", ["failed", "late", "quarantined", "unreachable", "stopped"])
def test_one_bad_site_makes_a_run_degraded_and_never_green(outcome: str) -> None:
    state = judge(RUN, [closed(2)], [site(2, "a", outcome, reason="NaN in head"), site(2, "b")], NOW)
    assert (state.word, state.tone) == ("running, degraded", "warn")
    assert state.detail == f"site a {outcome}: NaN in head"


def test_a_fault_stands_until_the_site_answers_again() -> None:
    late = [site(2, "a", "late"), site(2, "b")]
    assert judge(RUN, [closed(2)], [*late, site(3, "b")], NOW).tone == "warn"
    assert judge(RUN, [closed(2)], [*late, site(3, "b"), site(3, "a")], NOW).tone == "good"


def test_a_later_phase_does_not_hide_the_earlier_ones_fault() -> None:
    rows = [site(2, "a", "failed"), site(2, "a", "ok", "evaluate"), site(2, "b")]
    assert judge(RUN, [closed(2)], rows, NOW).tone == "warn"


def test_a_site_that_never_said_a_word_is_named() -> None:
    assert judge(RUN, [closed(2)], [site(2, "a")], NOW).detail == "site b: nothing recorded"


def test_a_void_round_is_said() -> None:
    state = judge(RUN, [closed(2, "void")], [site(2, "a"), site(2, "b")], NOW)
    assert state.detail == "round 2 void"


def test_a_run_finished_in_void_rounds_tells_its_reason_beside_the_fault() -> None:
    run = dataclasses.replace(RUN, status="finished", reason="no new model came of the last 1 round(s)", rounds_done=2)
    state = judge(run, [closed(2, "void")], [site(2, "a"), site(2, "b")], NOW)
    assert (state.word, state.tone) == ("finished, degraded", "warn")
    assert state.detail == "no new model came of the last 1 round(s); round 2 void"


@pytest.mark.parametrize(
    ("status", "reason", "word", "tone"),
    [
        ("waiting", None, "waiting", "idle"),
        ("failed", "no site ever answered", "failed", "bad"),
        ("stopped", None, "stopped", "warn"),
        ("finished", None, "finished early", "warn"),
    ],
)
def test_each_end_has_its_word(status: str, reason: str | None, word: str, tone: str) -> None:
    state = judge(dataclasses.replace(RUN, status=status, reason=reason), [], [], NOW)
    assert (state.word, state.tone) == (word, tone)


def test_a_dead_process_is_not_shown_as_running() -> None:
    state = judge(RUN, [closed(2)], [site(2, "a"), site(2, "b")], NOW + 600)
    assert (state.word, state.tone) == ("lost", "bad")
    assert "no sign of life for 10 min" in state.detail


def block(**curves: dict[int, float | None]) -> Block:
    return Block().grown({scope: list(curve.items()) for scope, curve in curves.items()}, 0, 4)


def test_the_worst_site_depends_on_which_way_is_better() -> None:
    curves = block(**{"global": {1: 0.1}, "a": {1: 0.2, 2: 0.9}, "b": {1: 0.3, 2: 0.8}})
    assert worst_site(curves, "auroc") == "b"
    assert worst_site(curves, "nll") == "a"


def test_one_site_alone_is_not_the_worst_and_undefined_is_not_compared() -> None:
    assert worst_site(block(a={1: 0.2}), "auroc") is None
    assert worst_site(block(a={1: 0.9, 2: 1.0}, b={1: 0.8, 2: 1.0}), "rotation_consistency") is None
    assert worst_site(block(a={1: 0.2, 2: None}, b={1: 0.1, 2: 0.5}), "auroc") == "b"


def test_a_site_keeps_its_colour_in_every_chart() -> None:
    auroc = block(**{scope: {1: 0.5} for scope in ("global", "a", "b", "c")})
    ece = block(**{scope: {1: 0.5} for scope in ("global", "c")})
    first, second = charts_of({"auroc": auroc, "ece": ece}, styles_of({*auroc.scopes, *ece.scopes}))
    styles = {line.scope: line.style for line in first.lines}
    assert styles["global"] == 0
    assert len(set(styles.values())) == 4
    assert {line.scope: line.style for line in second.lines} == {"global": 0, "c": styles["c"]}


def test_the_best_round_is_chosen_by_validation_images_only(tmp_path: Path, believable: ModuleType) -> None:
    with RunWriter(tmp_path / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        for number, value, test in ((1, 0.7, 0.1), (2, 0.6, 0.99), (3, float("nan"), 0.2)):
            writer.start_round(number)
            writer.record_metrics(number, "global", "val", {"auroc": value})
            writer.record_metrics(number, "global", "test", {"auroc": test})
            writer.record_metrics(number, "msk", "val", {"auroc": 1.0})
            writer.finish_round(number)
    with RunReader(tmp_path / "record.sqlite") as reader:
        best = best_round(hold(reader, 1))
    assert best is not None
    assert (best.server_round, best.value) == (1, 0.7)


def drawn(curves: Block) -> str:
    return str(draw(charts_of({"auroc": curves}, styles_of(curves.scopes))[0]))


def test_a_gap_in_a_curve_is_drawn_as_a_gap() -> None:
    drawing = drawn(block(a={1: 0.5, 2: None, 3: 0.6, 4: 0.7}))
    path = drawing.split('class="line')[1]
    assert path.split(' d="')[1].split('"')[0].count("M") == 2


def test_a_curve_of_one_point_or_of_undefined_ones_is_drawn() -> None:
    for values in ([0.5], [None, None], [0.3, 0.3, 0.3]):
        assert "</svg>" in drawn(block(**{"global": dict(enumerate(values, start=1))}))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (formats.figure(None), "undefined"),
        (formats.figure(0.12345), "0.123"),
        (formats.bounded(None), "–"),
        (formats.bounded(metric(1, "a", 0.5)), "0.500"),
        (formats.bounded(metric(1, "a", 0.5, bounds=0.1)), "0.500 (0.400 to 0.600)"),
        (formats.bounded(metric(1, "a", 120.0, name="num_examples")), "120"),
        (formats.duration(None), "–"),
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(600), "10 min"),
        (formats.duration(3 * 3600), "3.0 h"),
        (formats.duration(5 * 86400), "5 days"),
        (formats.size(None), "–"),
        (formats.size(999), "999 B"),
        (formats.size(2_040_000), "2.0 MB"),
        (formats.size(7 * 10**15), "7000.0 TB"),
        (formats.count(1234567), "1\u202f234\u202f567"),
        (formats.moment(0.0), "1970-01-01 00:00:00 UTC"),
        (formats.minute(None), "–"),
    ],
)
def test_figures_are_written_for_people(made: str, said: str) -> None:
    assert made == said


def test_settings_are_flat_lines() -> None:
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, 2], "e": {}}) == [
        ("a.b", "1"),
        ("a.c", "not set"),
        ("d", "1, 2"),
        ("e", "{}"),
    ]


def test_costs_add_up_over_the_run(written: Callable[..., Path]) -> None:
    with RunReader(written(rounds=4) / "opm-seed0" / "record.sqlite") as reader:
        view = view_run(reader, 1, split=None, now=NOW)
    cost = {item.site: item for item in view.costs}["msk"]
    # failed in round 4 of 4: three rounds trained, and what it sent in them
    assert (cost.rounds_ok, cost.rounds_all) == (3, 4)
    assert cost.bytes_up == 3 * (2_040_000 + 3_100)
    assert view.cells["msk"][4].code == "F"
    assert view.cells["rosendahl"][3].reason == "no answer within 60 s"


def test_a_watching_page_hears_of_a_new_round_within_a_second(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "live"
    home.mkdir()

    async def watch(writer: RunWriter) -> tuple[list[str], float]:
        watcher = events.Watcher(open_catalogue(tmp_path))
        looking = asyncio.create_task(watcher.run())
        stream = watcher.stream("live", seen=watcher.fresh("live"))
        heard = [await anext(stream)]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.to_thread(writer.start_round, 1)
        heard.append(await asyncio.wait_for(anext(stream), 5))
        took = loop.time() - begun
        watcher.stop()
        heard += [item async for item in stream]
        looking.cancel()
        return heard, took

    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        heard, took = asyncio.run(watch(writer))
    assert heard[0].startswith("retry:")
    assert heard[1].startswith("event: change")
    assert len(heard) == 2
    # 0.3 s between looks, the rest is slack for a busy machine
    assert took < 1.0


def test_silence_is_broken_by_pings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_SECONDS", 0.01)

    async def listen() -> list[str]:
        watcher = events.Watcher(open_catalogue(tmp_path))
        stream = watcher.stream(None, seen=watcher.fresh(None))
        return [await anext(stream), await anext(stream)]

    assert asyncio.run(listen())[1].startswith("event: ping")
