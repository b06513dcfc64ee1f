"""The list of runs tells how each is, whom it waits for and how long it may take; the server filters and sorts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from server.dashboard.app import create_app
from server.dashboard.catalogue import open_catalogue
from server.dashboard.health import judge, time_left
from server.dashboard.runlines import SORTS, Choice, RunLines
from server.store import RoundRow, RunSummary, RunWriter
from server.told import write_waiting

LOCAL = "http://127.0.0.1:8080"
NOW = 1_000_000.0
RUN = RunSummary(
    1, "run", "waiting", None, NOW, NOW, None, NOW, 0, "opm", 0, 10, 0, "phantom", True, (), ("a", "b"), {}, {}
)  # fmt: skip


def took(number: int, seconds: float | None) -> RoundRow:
    return RoundRow(number, NOW, NOW, "ok", seconds, None, None, None, {}, None)


def names(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/runs/[^"]+">([^<]+)</a>', page)


def test_a_waiting_run_names_the_sites_it_waits_for() -> None:
    assert judge(RUN, [], [], NOW, joined=()).detail == "waiting for 2 sites: a, b"
    assert judge(RUN, [], [], NOW, joined={"a"}).detail == "waiting for 1 site: b"
    assert judge(RUN, [], [], NOW, joined={"a", "b"}).detail == "the first round has not begun"
    assert judge(RUN, [], [], NOW).detail == "the first round has not begun"


def test_the_list_names_the_sites_a_run_waits_for(tmp_path: Path) -> None:
    (tmp_path / "young").mkdir()
    with RunWriter(tmp_path / "young" / "record.sqlite", heartbeat=0) as writer:
        writer.start_run(
            "young", config={}, environment={}, strategy="opm", seed=0, rounds_planned=9, data_name="phantom",
            phantom=True, classes=("x",), sites=("a", "b", "c"),
        )  # fmt: skip
        writer.record_details(0, [("b", "train", "joined", {"popmi": "0.1"})])
        with TestClient(create_app(tmp_path), base_url=LOCAL) as client:
            assert "waiting for 2 sites: a, c" in client.get("/").text
            assert "waiting for 2 sites: a, c" in client.get("/runs/young").text


def test_a_run_that_waits_for_sites_between_rounds_is_not_told_as_running(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    with RunWriter(tmp_path / "held" / "record.sqlite", heartbeat=0) as writer:
        writer.start_run(
            "held", config={}, environment={}, strategy="opm", seed=0, rounds_planned=9, data_name="phantom",
            phantom=True, classes=("x",), sites=("a", "b"),
        )  # fmt: skip
        writer.start_round(1)
        for site in ("a", "b"):
            writer.record_site(1, site)
        writer.finish_round(1, seconds_total=10.0)
        write_waiting(writer, 1, ["b"])
        with TestClient(create_app(tmp_path), base_url=LOCAL) as client:
            for page in ("/", "/runs/held"):
                assert "waiting for 1 site: b" in client.get(page).text
            told = client.get("/metrics").text
            assert 'popmi_run_state{id="1",run="held",state="waiting"} 1.0' in told
            assert 'popmi_run_state{id="1",run="held",state="running"} 0.0' in told
            line = RunLines(open_catalogue(tmp_path)).one("held")
            assert (line.state.word, line.state.tone, line.left) == ("waiting", "warn", None)
            write_waiting(writer, 1, [])
            assert "waiting for 1 site" not in re.sub(r"(?s)<ol.*|too few sites.*", "", client.get("/").text)
            write_waiting(writer, 1, ["b"])
            # Once a round is under way, what was waited for before it is over.
            writer.start_round(2)
            assert RunLines(open_catalogue(tmp_path)).one("held").state.word == "running"


def test_time_left_is_the_median_of_the_last_ten_rounds_times_the_rounds_left() -> None:
    run = replace(RUN, status="running", rounds_done=4)
    state = judge(run, [took(4, 20.0)], [], NOW)
    rounds = [took(1, 1000.0), *(took(number, 20.0) for number in range(2, 12))]
    assert time_left(run, rounds, state) == 6 * 20.0


@pytest.mark.parametrize("status", ["waiting", "finished", "failed", "stopped"])
def test_a_run_that_does_not_go_on_has_no_time_left(status: str) -> None:
    run = replace(RUN, status=status, rounds_done=4)
    assert time_left(run, [took(4, 20.0)], judge(run, [], [], NOW)) is None


def test_a_lost_run_and_one_before_its_first_round_have_no_time_left() -> None:
    run = replace(RUN, status="running")
    assert time_left(run, [took(4, 20.0)], judge(run, [], [], NOW + 600)) is None
    assert time_left(run, [took(1, None)], judge(run, [], [], NOW)) is None


def test_runs_are_filtered_and_sorted_by_links(written: Callable[..., Path], believable: ModuleType) -> None:
    written("alpha", rounds=2)
    written("beta", rounds=3, strategy="fedavg")
    runs = written("gamma", rounds=4)
    (runs / "going").mkdir()
    with RunWriter(runs / "going" / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, name="going", rounds=9)
        believable.add_round(writer, 1)
        with TestClient(create_app(runs), base_url=LOCAL) as client:
            assert names(client.get("/?sort=name&order=up").text) == ["alpha", "beta", "gamma", "going"]
            assert names(client.get("/?sort=name").text) == ["going", "gamma", "beta", "alpha"]
            assert names(client.get("/?q=ET").text) == ["beta"]
            assert names(client.get("/?strategy=fedavg").text) == ["beta"]
            assert names(client.get("/?state=going").text) == ["going"]
            assert "about" in client.get("/?state=going").text
            assert set(names(client.get("/?state=ended").text)) == {"alpha", "beta", "gamma"}
            # The believable run has trouble with a site in its third and its fourth round.
            assert set(names(client.get("/?state=trouble").text)) == {"beta", "gamma"}
            page = client.get("/?q=nothing").text
    assert "No run fits." in page
    assert "Show all 4" in page


@pytest.mark.parametrize("sort", [*SORTS, "nonsense"])
def test_every_order_shows_every_run_also_unreadable_ones(written: Callable[..., Path], sort: str) -> None:
    runs = written("good", rounds=1)
    (runs / "bad").mkdir()
    (runs / "bad" / "record.sqlite").write_bytes(b"garbage " * 1000)
    lines = RunLines(open_catalogue(runs)).all()
    for order in ("up", "down"):
        assert {line.key for line in Choice(sort=sort, order=order).of(lines)} == {"good", "bad"}


def test_a_line_is_read_again_only_when_its_run_changed(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = RunLines(open_catalogue(written("one", rounds=2)))
    assert lines.all()[0].best is not None
    monkeypatch.setattr("server.dashboard.runlines._read", lambda *_: pytest.fail("read again"))
    assert lines.all()[0].best is not None
