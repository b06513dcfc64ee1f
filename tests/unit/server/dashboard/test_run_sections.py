"""A run's page is sent in sections: rendered once for all, and only those that changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from server.dashboard.app import create_app
from server.dashboard.sections import SECTIONS
from server.store import RunWriter

LOCAL = "http://127.0.0.1:8080"


@contextmanager
def browsing(runs: Path) -> Iterator[TestClient]:
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        yield client


def digests(page: str) -> list[str]:
    return re.findall(r'class="part" data-part="(\w+)"', page)


@pytest.fixture
def live(tmp_path: Path, believable: ModuleType) -> Iterator[RunWriter]:
    (tmp_path / "runs" / "live").mkdir(parents=True)
    with RunWriter(tmp_path / "runs" / "live" / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=9, name="live")
        believable.add_round(writer, 1)
        yield writer


def test_a_page_that_has_everything_is_sent_nothing(tmp_path: Path, live: RunWriter) -> None:
    with browsing(tmp_path / "runs") as client:
        have = digests(client.get("/runs/live").text)
        assert len(have) == len(SECTIONS)
        assert client.get(f"/runs/live/live?have={'.'.join(have)}").text == ""


def test_a_new_round_sends_what_changed_and_leaves_the_drawn_curves_alone(
    tmp_path: Path, live: RunWriter, believable: ModuleType
) -> None:
    with browsing(tmp_path / "runs") as client:
        have = digests(client.get("/runs/live").text)
        believable.add_round(live, 2)
        sent = client.get(f"/runs/live/live?have={'.'.join(have)}").text
        again = digests(client.get("/runs/live").text)
        assert client.get(f"/runs/live/live?have={'.'.join(again)}").text == ""
    names = re.findall(r'id="part-(\w+)"', sent)
    assert {"head", "participation", "figures", "rounds"} <= set(names)
    assert not {"curves", "running", "classes"} & set(names)
    assert sent.count('hx-swap-oob="true"') == len(names)


def test_an_open_round_changes_who_takes_part_and_no_figure(tmp_path: Path, live: RunWriter) -> None:
    with browsing(tmp_path / "runs") as client:
        have = digests(client.get("/runs/live").text)
        live.start_round(2)
        live.record_site(2, "msk", outcome="late", reason="asleep")
        sent = client.get(f"/runs/live/live?have={'.'.join(have)}").text
    # Head and participation; nothing that belongs to finished rounds.
    assert set(re.findall(r'id="part-(\w+)"', sent)) == {"head", "participation"}
    assert "asleep" in sent


def test_a_series_comes_whole_and_then_by_round(tmp_path: Path, live: RunWriter, believable: ModuleType) -> None:
    with browsing(tmp_path / "runs") as client:
        whole = client.get("/runs/live/series").json()
        believable.add_round(live, 2)
        more = client.get(f"/runs/live/series?epoch={whole['epoch']}&since={whole['done'] + 1}").json()
        assert (more["from"], more["done"], more["charts"]["auroc"]["rounds"]) == (2, 2, [2])
        assert len(more["charts"]["auroc"]["lines"][0]["values"]) == 1
        live.drop_rounds(after=1)
        believable.add_round(live, 2)
        # Told of rounds that no longer hold: everything comes again.
        anew = client.get(f"/runs/live/series?epoch={more['epoch']}&since=3").json()
    assert (anew["from"], anew["charts"]["auroc"]["rounds"]) == (0, [1, 2])
    assert anew["epoch"] != whole["epoch"]


def test_a_series_that_the_browser_has_is_not_sent_again(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=3)) as client:
        first = client.get("/runs/opm-seed0/series")
        assert first.headers["content-encoding"] == "gzip"
        again = client.get("/runs/opm-seed0/series", headers={"If-None-Match": first.headers["etag"]})
        plain = client.get("/runs/opm-seed0/series", headers={"Accept-Encoding": "identity"})
    assert (again.status_code, again.content) == (304, b"")
    assert plain.json() == first.json()
    assert "no-cache" in first.headers["cache-control"]


def test_curves_name_the_worst_site_and_say_it_in_words(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=4)) as client:
        chart = client.get("/runs/opm-seed0/series").json()["charts"]["auroc"]
    assert chart["worst"] == "vienna_dias"
    assert "worst site <strong>vienna_dias</strong>" in chart["reading"]
    assert [line["kind"] for line in chart["lines"]] == ["global"] + ["site"] * 5


def test_tables_come_when_they_are_opened_and_are_pages_without_scripts(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=3)) as client:
        for path in ("curves/auroc", "curves/seconds", "attendance", "rounds/2"):
            whole = client.get(f"/runs/opm-seed0/{path}")
            part = client.get(f"/runs/opm-seed0/{path}", headers={"HX-Request": "true"})
            assert "<!doctype html>" in whole.text
            assert "<!doctype html>" not in part.text
        assert client.get("/runs/opm-seed0/curves/nothing").status_code == 404
        assert client.get("/runs/opm-seed0/rounds/77").status_code == 404
        rows = client.get("/runs/opm-seed0/curves/auroc.csv").text.splitlines()
    assert rows[0] == "round,global,msk,rosendahl,vidir_modern,vidir_molemax,vienna_dias"
    assert len(rows) == 4


def test_one_round_can_be_looked_at_closely(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=4)) as client:
        newest = client.get("/runs/opm-seed0").text
        picked = client.get("/runs/opm-seed0?round=2").text
        nothing = client.get("/runs/opm-seed0?round=99").text
    assert "Round 4. Gain" in newest
    assert "Round 2. Gain" in picked
    assert "what the record tells of round 2" in picked
    assert 'id="matching"' not in nothing


def test_rounds_of_participation_are_turned_by_forties(tmp_path: Path, believable: ModuleType) -> None:
    (tmp_path / "long").mkdir()
    with RunWriter(tmp_path / "long" / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=45, name="long")
        for number in range(1, 46):
            writer.start_round(number)
            writer.record_site(number, "msk", outcome="ok" if number != 3 else "failed", reason="no room")
            writer.finish_round(number)
    with browsing(tmp_path) as client:
        page = client.get("/runs/long").text
        assert "Rounds 6 to 45 of 45" in page
        assert "upto=5" in page
        earlier = client.get("/runs/long?upto=5").text
        assert 'popovertarget="why-3-0"' in earlier
        glance = client.get("/runs/long/attendance").text
    assert '<rect class="failed" x="2"' in glance
    assert "<td>44</td>" in glance


def test_a_site_may_be_chosen_for_calibration_and_confusion(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=2)) as client:
        page = client.get("/runs/opm-seed0?scope=msk").text
    assert "msk, validation images; down: the true class" in page
    assert page.count(">hidden</span>") > 10


def test_an_epsilon_stands_against_its_limit(tmp_path: Path, believable: ModuleType) -> None:
    (tmp_path / "private").mkdir()
    with RunWriter(tmp_path / "private" / "record.sqlite", heartbeat=0) as writer:
        config = {"strategy": "opm", "privacy": {"target_epsilon": 8.0, "target_delta": 1e-5}}
        believable.begin(writer, name="private", config=config)
        for site in ("msk", "rosendahl"):
            writer.record_details(0, [(site, "train", "joined", {"epsilon_limit": 4.0, "delta": 1e-5})])
        believable.add_round(writer, 1)
    with browsing(tmp_path) as client:
        page = client.get("/runs/private").text
    sites = page.split('id="sites"')[1].split("</table>")[0]
    assert "<td>4.00 <small>delta 1e-05</small></td>" in sites
    # 0.6 of 4 and, for a site that told no limit of its own, of the run's 8
    assert "15.0 %" in sites
    assert "8.00" in sites


def test_a_run_with_a_budget_is_private_before_its_first_epsilon(tmp_path: Path, believable: ModuleType) -> None:
    for name, privacy in (("private", {"target_epsilon": 8.0, "target_delta": 1e-5}), ("open", None)):
        (tmp_path / name).mkdir()
        with RunWriter(tmp_path / name / "record.sqlite", heartbeat=0) as writer:
            believable.begin(writer, name=name, config={"strategy": "opm", "privacy": privacy})
    with browsing(tmp_path) as client:
        private, public = (
            [client.get(f"/runs/{name}{part}").text for part in ("", "/report.html")] for name in ("private", "open")
        )
    assert "no DP" not in private[0].split('id="sites"')[1].split("</table>")[0]
    assert "no DP" in public[0].split('id="sites"')[1].split("</table>")[0]
    assert "Trained without differential privacy" not in private[1]
    assert "Trained without differential privacy" in public[1]


def test_what_each_site_weighed_is_a_curve(tmp_path: Path, believable: ModuleType) -> None:
    (tmp_path / "weighed").mkdir()
    with RunWriter(tmp_path / "weighed" / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, name="weighed", sites=("a", "b"))
        writer.start_round(1)
        writer.finish_round(1, notes={"weights": {"a": 30, "b": 10}})
    with browsing(tmp_path) as client:
        chart = client.get("/runs/weighed/series").json()["charts"]["weights"]
    assert {line["scope"]: line["values"] for line in chart["lines"]} == {"a": [0.75], "b": [0.25]}
    assert chart["worst"] is None
