"""``/api/v1`` of runs: heads, every table, details in JSON and, flattened, in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.dashboard import exports
from server.dashboard.app import create_app
from server.dashboard.exports import TABLES, leaves

LOCAL = "http://127.0.0.1:8080"


@pytest.fixture
def client(written: Callable[..., Path]) -> Iterator[TestClient]:
    with TestClient(create_app(written(rounds=4)), base_url=LOCAL) as client:
        yield client


def test_a_head_tells_state_and_time_left(client: TestClient) -> None:
    head = client.get("/api/v1/runs/opm-seed0").json()
    assert head["state"] == {"word": "finished, degraded", "tone": "warn", "detail": head["state"]["detail"]}
    assert head["seconds_left"] is None
    assert client.get("/api/v1/runs").json() == [head]


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_is_described_and_can_be_narrowed_to_a_round(client: TestClient, table: str) -> None:
    path = f"/api/v1/runs/opm-seed0/{table}"
    described = client.get("/api/v1/openapi.json").json()
    answers = described["paths"][f"/api/v1/runs/{{key}}/{table}"]["get"]["responses"]
    assert {"200", "404", "422", "503"} <= set(answers)
    rows = client.get(path).json()
    assert rows or table == "candidates"
    only = client.get(path, params={"round": 2}).json()
    assert only == [row for row in rows if row["server_round"] == 2]


def test_a_diary_that_is_cut_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.get("/api/v1/runs/opm-seed0/events")
    assert "X-POPMI-Rows" not in whole.headers
    assert "opm-seed0-events.csv" in client.get("/runs/opm-seed0/events.csv").headers["content-disposition"]
    monkeypatch.setattr(exports, "LONGEST_DIARY", 2)
    cut = client.get("/api/v1/runs/opm-seed0/events")
    assert (cut.headers["X-POPMI-Rows"], cut.json()) == ("newest-2", whole.json()[-2:])
    for ending in ("csv", "json"):
        named = client.get(f"/runs/opm-seed0/events.{ending}").headers["content-disposition"]
        assert f"opm-seed0-events-newest-2.{ending}" in named


@pytest.mark.parametrize("path", ["nothing", "nothing/metrics", "opm-seed0/secret", "..%2f/metrics"])
def test_what_is_not_there_is_404_with_a_reason(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/v1/runs/{path}")
    assert answer.status_code == 404
    assert "detail" in answer.json()


def test_details_are_nested_in_json_and_lines_in_csv(client: TestClient) -> None:
    found = client.get("/api/v1/runs/opm-seed0/details", params={"round": 4}).json()
    rotation = next(row for row in found if row["kind"] == "rotation" and row["scope"] == "global")
    assert len(rotation["value"]["angles"]) == len(rotation["value"]["flips"])
    rows = list(csv.DictReader(io.StringIO(client.get("/runs/opm-seed0/details.csv").text)))
    place = {"server_round": "4", "scope": "global", "kind": "rotation", "item": "flips.1"}
    line = next(row for row in rows if place.items() <= row.items())
    assert float(line["value"]) == rotation["value"]["flips"][1]
    assert client.get("/runs/opm-seed0/details.json").json()


def test_notes_are_json_in_a_cell(client: TestClient) -> None:
    rows = list(csv.DictReader(io.StringIO(client.get("/runs/opm-seed0/rounds.csv").text)))
    assert rows[0]["notes"].startswith('{"rules": {')


def test_leaves_keep_their_place() -> None:
    assert list(leaves({"a": [1, {"b": None}], "c": "x"})) == [("a.0", 1), ("a.1.b", None), ("c", "x")]
