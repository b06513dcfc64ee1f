"""What the load study of the pages takes from a page, and how it counts; no server is started."""

from __future__ import annotations

import json

import pytest

from server.centre import open_centre
from server.centre.sessions import SessionLimits, known
from server.store import RunReader

HTML = """
<div id="live" data-changes="/runs/a%20b/changes?seen=1&amp;x=2" data-series="/runs/a/series?split=val"
  hx-get="/runs/a/live?split=val" hx-trigger="popmi:change">
<div id="part-head" class="part" data-part="d1"><p id="clock" data-epoch="e1" data-done="1000"></p></div>
<div id="part-curves" class="part" data-part="d2"></div>
</div>
"""
NEWS = '<div id="part-head" class="part" data-part="d3"><p id="clock" data-epoch="e1" data-done="1001"></p></div>'


@pytest.fixture
def viewers(load_from):
    return load_from("dashboard", "viewers")


@pytest.fixture
def load(load_from):
    return load_from("dashboard", "load")


@pytest.fixture
def filling(load_from):
    return load_from("dashboard", "filling")


def test_a_viewer_asks_for_the_sections_that_it_has_not(viewers):
    page = viewers.Page()
    page.read(HTML)
    assert page.stream == "/runs/a%20b/changes?seen=1&x=2"
    assert page.sections_wanted == "/runs/a/live?split=val&have=d1.d2"
    page.read(NEWS)
    assert page.sections_wanted == "/runs/a/live?split=val&have=d3.d2"
    assert page.clock == ("e1", "1001")


def test_a_viewer_asks_for_all_points_first_and_then_for_the_new_ones(viewers):
    page = viewers.Page()
    page.read(HTML)
    assert page.points_wanted == "/runs/a/series?split=val"
    page.epoch, page.done = "e1", 1000
    assert page.points_wanted == "/runs/a/series?split=val&epoch=e1&since=1001"


def test_delays_count_from_the_commit_to_the_first_event_and_to_the_page(load):
    seen = {
        "viewers": [
            {"events": [9.9, 10.2, 12.4], "shown": {"1": 10.5, "2": 12.9}},
            {"events": [10.1], "shown": {"2": 12.6}},
        ],
        "fetched": {"part: /live": [0.1, 0.3]}, "bytes": {"part: /live": 4}, "status": {"200": 2}, "trouble": {},
        "processor": 0.5, "loop_late": [0.01],
    }  # fmt: skip
    written = [{"round": 1, "begun": 9.5, "committed": 10.0}, {"round": 2, "begun": 11.0, "committed": 12.0}]
    found = load.delays(seen, written)
    assert found["event"] == {"count": 3, "p50": 0.2, "p95": 0.4, "max": 0.4}
    # A page drawn for round 2 shows round 1 as well.
    assert found["shown"] == {"count": 4, "p50": 0.75, "p95": 2.6, "max": 2.6}
    assert found["not_shown"] == 0
    assert found["writing"]["max"] == 1.0
    assert load.delays(seen | {"viewers": [{"events": [], "shown": {}}]}, written)["not_shown"] == 2


def test_nothing_measured_is_told_as_nothing(load):
    assert load.spread([]) == {"count": 0}
    assert load.spread([3.0, 1.0, 2.0]) == {"count": 3, "p50": 2.0, "p95": 3.0, "max": 3.0}


def test_a_filled_record_is_a_run_that_goes_on(filling, tmp_path):
    run_id = filling.fill(tmp_path / "record.sqlite", "long", 60, planned=5000)
    filling.go_on(str(tmp_path / "record.sqlite"), run_id, 61, 2, 0.0, tmp_path / "told")
    with RunReader(tmp_path / "record.sqlite") as reader:
        run = reader.run(run_id)
        assert (run.status, run.rounds_done, run.rounds_planned) == ("running", 62, 5000)
        assert len(reader.rounds(run_id)) == 62
        assert {row.outcome for row in reader.sites(run_id)} == {"ok", "late"}
        assert len(reader.series(run_id, "auroc", "val")) == 21
        assert reader.details(run_id, kind="similarity", server_round=60)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [row["round"] for row in told] == [61, 62]


def test_viewers_are_signed_in(filling, tmp_path):
    secrets = filling.fill_centre(tmp_path / "centre.sqlite", tmp_path, "long", 3, 2)
    engine = open_centre(tmp_path / "centre.sqlite")
    assert len({*secrets}) == 2
    assert all(known(engine, secret, SessionLimits(), acts=False) for secret in secrets)
    engine.dispose()


def test_the_page_tells_every_figure(load, load_from):
    took = {"count": 2, "p50": 0.0123, "p95": 0.2, "max": 1.0}
    case = {
        "cold": {"healthz": 1.0, "run": 2.0}, "megabytes": 3.0, "megabytes_peak": 90.0, "opened_processor": 1.0,
        "processor": 2.0, "wall": 60.0, "load": 3.5, "event": took, "shown": {"count": 0}, "writing": took,
        "not_shown": 4, "trouble": {"stream lost": 1}, "pages": {"run": took | {"status": 200, "bytes": 1500}},
        "fetched": {"part: /live": took | {"bytes": 2_000_000}}, "viewers_late": took,
    }  # fmt: skip
    found = {
        "rounds": 1000, "sites": 20, "viewers": 50, "every": 2.0, "seconds": 60.0, "cores": 2, "load": 0.5,
        "assets": [{"name": "page.css", "bytes": 2000, "gzip": 1000}], "cases": {"sqlite": case},
    }  # fmt: skip
    page = load_from("dashboard", "page").report(found)
    assert "| sqlite | commit to event | 2 | 12 | 200 | 1000 |" in page
    assert "| sqlite | commit to the round on the page | 0 | – | – | – |" in page
    assert "| sqlite | run | 200 | 2 | 1.5 | 12 | 200 | 1000 |" in page
    assert "| all | 2.0 | 1.0 |" in page
    assert "sqlite 4." in page
