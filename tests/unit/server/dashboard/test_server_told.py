"""What Prometheus is told of sites, limits and of the server behind the pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import Engine

from server.centre import open_centre
from server.centre.board import write_board
from server.centre.orders import count_waiting, decide, place
from server.dashboard.app import create_app
from server.dashboard.metrics import ServerCollector
from server.store import RunReader, RunWriter

LOCAL = "http://127.0.0.1:8080"
Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Told:
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("run", "id")))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(told: Told, name: str) -> Iterator[tuple[tuple[tuple[str, str], ...], float]]:
    """Return labels and values of one metric."""
    return ((labels, value) for (found, labels), value in told.items() if found == name)


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Engine]:
    engine = open_centre(tmp_path / "centre.sqlite")
    yield engine
    engine.dispose()


def told_of(centre: Engine | None) -> Told:
    registry = CollectorRegistry()
    registry.register(ServerCollector(centre))
    return samples(generate_latest(registry).decode())


def test_every_sites_auroc_of_the_newest_round_is_told(written: Callable[..., Path]) -> None:
    runs = written(rounds=4)
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        told = samples(client.get("/metrics").text)
    with RunReader(runs / "opm-seed0" / "record.sqlite") as reader:
        curve = {scope: points.get(4) for scope, points in reader.series(1, "auroc", "val").items()}
    sites = {site: value for site, value in curve.items() if site != "global" and value is not None}
    found = {
        dict(labels)["site"]: value for labels, value in of(told, "popmi_site_auroc") if ("split", "val") in labels
    }
    assert found == pytest.approx(sites)
    assert len(found) > 1


def test_the_budget_that_a_site_grants_is_told_and_none_where_it_told_none(
    tmp_path: Path, believable: ModuleType
) -> None:
    with RunWriter(tmp_path / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer)
        for site, limit in (("msk", 8.0), ("rosendahl", None), ("vidir_modern", "odd")):
            writer.record_details(0, [(site, "train", "joined", {"epsilon_limit": limit})])
        believable.add_round(writer, 1)
    with TestClient(create_app(tmp_path), base_url=LOCAL) as client:
        told = samples(client.get("/metrics").text)
    assert list(of(told, "popmi_site_epsilon_limit")) == [((("site", "msk"),), 8.0)]


def test_pages_without_a_server_tell_nothing_of_one() -> None:
    assert told_of(None) == {}


def test_a_server_whose_keeper_was_never_there_has_no_orders_and_no_age(centre: Engine) -> None:
    assert told_of(centre) == {("popmi_centre_up", ()): 1, ("popmi_orders_waiting", ()): 0}


def test_orders_that_wait_are_counted_until_they_are_answered(centre: Engine) -> None:
    first = place(centre, "stop", {"run": "first"}, who="ada", via="page")
    place(centre, "resume", {"run": "first"}, who="ada", via="page")
    assert told_of(centre)["popmi_orders_waiting", ()] == count_waiting(centre) == 2
    decide(centre, first, "done", "rests")
    assert told_of(centre)["popmi_orders_waiting", ()] == 1


def test_the_keepers_last_look_and_what_it_saw_are_told(centre: Engine) -> None:
    write_board(centre, "status", {"waiting": ["charite"]}, clock=lambda: time.time() - 40)
    listed = [
        {"name": "charite", "state": "enrolled", "online": True},
        {"name": "zurich", "state": "enrolled", "online": False},
        {"name": "oslo", "state": "invited", "online": False},
        {"name": "bern", "state": "enrolled", "online": None},
    ]
    write_board(centre, "sites", {"sites": listed})
    told = told_of(centre)
    # a look takes far less than the five seconds allowed here
    assert told["popmi_keeper_age_seconds", ()] == pytest.approx(40, abs=5)
    assert told["popmi_sites_waiting", ()] == 1
    assert told["popmi_sites", (("state", "enrolled"),)] == 3
    assert told["popmi_sites", (("state", "invited"),)] == 1
    assert told["popmi_site_online", (("site", "charite"),)] == 1
    assert told["popmi_site_online", (("site", "zurich"),)] == 0
    # What the SuperLink did not say is left out, never told as off line.
    assert not {("popmi_site_online", (("site", site),)) for site in ("oslo", "bern")} & told.keys()


def test_what_no_keeper_would_write_breaks_no_answer(centre: Engine) -> None:
    for key, value in (("status", ["odd"]), ("sites", "odd")):
        write_board(centre, key, value)
    assert told_of(centre) == {("popmi_centre_up", ()): 1, ("popmi_orders_waiting", ()): 0}


def test_a_centre_that_is_away_is_said_to_be_down_and_tells_nothing_old(tmp_path: Path) -> None:
    engine = open_centre(tmp_path / "centre.sqlite")
    engine.dispose()
    (tmp_path / "centre.sqlite").unlink()
    (tmp_path / "centre.sqlite").mkdir()
    assert told_of(engine) == {("popmi_centre_up", ()): 0}
