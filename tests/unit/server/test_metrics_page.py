"""What Prometheus is told, under which names, and to whom (server/dashboard/metrics.py)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from popmi_core.errors import ConfigError
from server.dashboard.access.binding import Binding, check
from server.dashboard.app import create_app
from server.dashboard.families import STATES
from server.dashboard.metrics import RUNS_TOLD
from server.store import RunReader, RunWriter

ROOT = Path(__file__).parents[3]
LOCAL = "http://127.0.0.1:8080"
GRAFANA = ROOT / "deploy/monitoring/grafana/dashboards/popmi.json"
Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def asked(runs: str | Path) -> Told:
    """Ask as Prometheus does; returns ``{(name, labels without run and id): value}``."""
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("run", "id")))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_runs_round_state_and_plan_are_told(written: Callable[..., Path]) -> None:
    told = asked(written(rounds=4))
    assert told["popmi_round", ()] == 4
    assert told["popmi_rounds_planned", ()] == 4
    assert {word: told["popmi_run_state", (("state", word),)] for word in STATES} == dict.fromkeys(STATES, 0.0) | {
        "finished": 1.0
    }
    assert told["popmi_record_up", ()] == 1
    assert told["popmi_unreadable_runs", ()] == 0


def test_seconds_of_the_last_round_are_told_by_phase(written: Callable[..., Path]) -> None:
    runs = written(rounds=3)
    with RunReader(runs / "opm-seed0" / "record.sqlite") as reader:
        last = reader.rounds(1)[-1]
    told = asked(runs)
    for phase in ("total", "train", "fuse", "evaluate"):
        assert told["popmi_round_seconds", (("phase", phase),)] == pytest.approx(getattr(last, f"seconds_{phase}"))


@pytest.mark.parametrize(("figure", "name"), [("auroc", "auroc"), ("nll", "loss"), ("ece", "ece")])
def test_pooled_figures_are_the_newest_of_the_record(written: Callable[..., Path], figure: str, name: str) -> None:
    runs = written(rounds=4)
    with RunReader(runs / "opm-seed0" / "record.sqlite") as reader:
        curve = reader.series(1, figure, "val")["global"]
    told = asked(runs)
    assert told[f"popmi_pooled_{name}", (("split", "val"),)] == pytest.approx(curve[4])


def test_an_undefined_figure_is_left_out_and_not_told_as_nought(tmp_path: Path, believable: ModuleType) -> None:
    record = tmp_path / "record.sqlite"
    with RunWriter(record, heartbeat=0) as writer:
        believable.begin(writer)
        writer.start_round(1)
        writer.record_metrics(1, "global", "val", {"auroc": float("nan"), "nll": 1.5})
        writer.finish_round(1, seconds_total=1.0)
    told = asked(tmp_path)
    assert ("popmi_pooled_auroc", (("split", "val"),)) not in told
    assert told["popmi_pooled_loss", (("split", "val"),)] == 1.5
    assert ("popmi_round_seconds", (("phase", "fuse"),)) not in told


def test_every_site_has_outcome_examples_epsilon_and_bytes(written: Callable[..., Path]) -> None:
    runs = written(rounds=4)
    told = asked(runs)
    # In round 4 msk failed (tests/support/believable_run.py).
    assert told["popmi_site_outcome", (("outcome", "failed"), ("site", "msk"))] == 1
    assert told["popmi_site_outcome", (("outcome", "ok"), ("site", "vidir_modern"))] == 1
    assert told["popmi_site_examples", (("site", "vidir_modern"),)] == 580
    assert told["popmi_site_epsilon", (("site", "vidir_modern"),)] == pytest.approx(0.6 * 2 * 1.16)
    with RunReader(runs / "opm-seed0" / "record.sqlite") as reader:
        up = sum(row.bytes_up or 0 for row in reader.sites(1) if row.site == "vidir_modern")
    assert told["popmi_site_bytes_total", (("direction", "up"), ("site", "vidir_modern"))] == up
    assert told["popmi_run_faults", ()] == 1


def test_bytes_that_nobody_counted_are_left_out_and_not_told_as_nought(tmp_path: Path, believable: ModuleType) -> None:
    with RunWriter(tmp_path / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        writer.start_round(1)
        writer.record_site(1, "msk", num_examples=10, bytes_up=7)
        writer.finish_round(1, seconds_total=1.0)
    told = asked(tmp_path)
    assert told["popmi_site_bytes_total", (("direction", "up"), ("site", "msk"))] == 7
    assert ("popmi_site_bytes_total", (("direction", "down"), ("site", "msk"))) not in told


def test_a_going_run_tells_its_last_sign_of_life_and_a_silent_one_is_lost(
    tmp_path: Path, believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter(tmp_path / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        believable.add_round(writer, 1)
        _judge_going(tmp_path, monkeypatch)


def _judge_going(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = asked(runs)
    assert 0 <= told["popmi_heartbeat_age_seconds", ()] < 20
    assert told["popmi_run_state", (("state", "running"),)] == 1
    now = time.time()
    monkeypatch.setattr("server.dashboard.metrics.time.time", lambda: now + 1000)
    told = asked(runs)
    assert told["popmi_heartbeat_age_seconds", ()] > 900
    assert told["popmi_run_state", (("state", "lost"),)] == 1
    assert told["popmi_run_state", (("state", "running"),)] == 0


def test_a_finished_run_has_no_sign_of_life(written: Callable[..., Path]) -> None:
    assert ("popmi_heartbeat_age_seconds", ()) not in asked(written(rounds=1))


def test_a_record_that_cannot_be_read_is_counted_and_hides_no_other(written: Callable[..., Path]) -> None:
    runs = written(rounds=1)
    (runs / "bad").mkdir()
    (runs / "bad" / "record.sqlite").write_bytes(b"garbage " * 1000)
    told = asked(runs)
    assert told["popmi_unreadable_runs", ()] == 1
    assert told["popmi_round", ()] == 1


def test_a_database_that_is_away_is_said_to_be_down(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    told = asked(f"sqlite:///{tmp_path / 'nowhere' / 'record.sqlite'}")
    assert told == {("popmi_record_up", ()): 0}


def test_only_the_newest_runs_are_told(tmp_path: Path, believable: ModuleType) -> None:
    database = f"sqlite:///{tmp_path / 'many.sqlite'}"
    for number in range(RUNS_TOLD + 2):
        with RunWriter(database, heartbeat=0) as writer:
            believable.begin(writer, name=f"run-{number:02d}")
            writer.finish_run("finished")
    with TestClient(create_app(database), base_url=LOCAL) as client:
        text = client.get("/metrics").text
    names = set(re.findall(r'popmi_round\{id="\d+",run="([^"]+)"\}', text))
    assert names == {f"run-{number:02d}" for number in range(2, RUNS_TOLD + 2)}


def test_a_name_with_quotes_breaks_no_line(written: Callable[..., Path]) -> None:
    runs = written("odd", rounds=1, sites=('a"b\\c', "d"))
    assert asked(runs)["popmi_round", ()] == 1


def names_of_families(runs: Path) -> set[str]:
    """Return every name that the real answer tells a type of, also where it has no value."""
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        return set(re.findall(r"^# TYPE (popmi_[a-z_]+) ", client.get("/metrics").text, re.MULTILINE))


def test_every_metric_that_the_grafana_dashboard_names_exists_and_every_metric_is_shown(tmp_path: Path) -> None:
    text = GRAFANA.read_text()
    shown = set(re.findall(r"popmi_[a-z_]+", " ".join(expressions(json.loads(text)))))
    assert shown == names_of_families(tmp_path)


def expressions(dashboard: dict[str, object]) -> list[str]:
    panels = dashboard["panels"]
    assert isinstance(panels, list)
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_grafana_dashboard_has_no_two_panels_in_one_place_and_a_title_for_each() -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    taken = [
        (panel["gridPos"]["x"] + right, panel["gridPos"]["y"] + down)
        for panel in panels
        for right in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert {panel["id"] for panel in panels} == set(range(1, len(panels) + 1))


def test_a_panel_without_a_time_axis_shows_what_is_now_and_nothing_of_before() -> None:
    # Asked over the last hours, a finished run would still be "waiting" and "running", and a dead record would answer.
    for panel in json.loads(GRAFANA.read_text())["panels"]:
        now = panel["type"] != "timeseries"
        assert all(target.get("instant", False) is now for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("host", ["dashboard", "dashboard:8080", "DASHBOARD:8080"])
def test_prometheus_may_ask_by_the_services_name_for_metrics_and_for_nothing_else(
    written: Callable[..., Path], host: str
) -> None:
    app = create_app(written(rounds=1), binding=Binding(metrics_name="dashboard"))
    with TestClient(app, base_url=LOCAL) as client:
        assert client.get("/metrics", headers={"Host": host}).status_code == 200
        for path in ("/", "/api/v1/runs", "/metrics/", "/healthz"):
            assert client.get(path, headers={"Host": host}, follow_redirects=False).status_code == 400


def test_without_a_name_a_foreign_host_is_refused_metrics_too(written: Callable[..., Path]) -> None:
    with TestClient(create_app(written(rounds=1)), base_url=LOCAL) as client:
        assert client.get("/metrics", headers={"Host": "dashboard:8080"}).status_code == 400
        assert client.get("/metrics", headers={"Host": ""}).status_code == 400


@pytest.mark.parametrize("published", ["127.0.0.1", "::1", "localhost"])
def test_a_container_may_listen_to_its_network_when_its_port_is_published_here_only(published: str) -> None:
    check(Binding(host="0.0.0.0", published_on=published), login=False)


@pytest.mark.parametrize("published", ["0.0.0.0", "", "192.0.2.7", "pages.example.org"])
def test_a_container_published_to_others_is_refused(published: str) -> None:
    with pytest.raises(ConfigError, match=r"which is no loopback address, expected 127\.0\.0\.1"):
        check(Binding(host="0.0.0.0", published_on=published), login=False)
    # Not even when it listens to itself only: what was said is wrong.
    with pytest.raises(ConfigError, match=r"Publish the container's port as 127\.0\.0\.1:8080:8080"):
        check(Binding(host="127.0.0.1", published_on=published), login=False)
