"""Runs side by side: what differs is shown, what is best is said, and what may not be compared is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.dashboard.app import create_app
from server.dashboard.comparing import compare
from server.dashboard.held import hold
from server.store import RunReader

LOCAL = "http://127.0.0.1:8080"


@pytest.fixture
def client(written: Callable[..., Path]) -> Iterator[TestClient]:
    written("one", rounds=3)
    written("two", rounds=5, strategy="fedavg", seed=1)
    runs = written("three", rounds=4, classes=("a", "b"), data_name="dermoscopy")
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        yield client


def test_two_runs_lie_over_each_other(client: TestClient) -> None:
    page = client.get("/compare?run=one&run=two").text
    for said in ("Compare 2 runs", "Settings that differ", ">strategy<", ">fedavg<", "<small>best</small>"):
        assert said in page
    # What is the same in both is not in the table.
    assert ">data<" not in page
    assert ">local.learning_rate<" not in page
    chart = client.get("/compare/series?run=one&run=two").json()["charts"]["auroc"]
    assert chart["rounds"] == [1, 2, 3, 4, 5]
    lines = {line["scope"]: line for line in chart["lines"]}
    assert [value is None for value in lines["one"]["values"]] == [False] * 3 + [True] * 2
    assert lines["one"]["style"] != lines["two"]["style"]


def test_one_figure_and_another_split_can_be_chosen(client: TestClient) -> None:
    query = "run=one&run=two&split=test&metric=ece"
    assert list(client.get(f"/compare/series?{query}").json()["charts"]) == ["ece"]
    assert client.get(f"/compare?{query}").text.count('data-chart="') == 1
    rows = client.get(f"/compare/curves/ece.csv?{query}").text.splitlines()
    assert rows[0] == "round,one,two"
    assert client.get(f"/compare/curves/nothing?{query}").status_code == 404


def test_tables_of_a_comparison_come_when_opened(client: TestClient) -> None:
    path = "/compare/curves/auroc?run=one&run=two"
    assert "<!doctype html>" in client.get(path).text
    assert "<!doctype html>" not in client.get(path, headers={"HX-Request": "true"}).text


def test_runs_that_cannot_be_compared_are_told(client: TestClient) -> None:
    page = client.get("/compare?run=one&run=three").text
    assert "The runs have different classes" in page
    assert "made on different data" in page
    assert "different seeds" not in page
    assert "different seeds" in client.get("/compare?run=one&run=two").text


@pytest.mark.parametrize("number", [0, 1, 9])
def test_fewer_than_two_or_more_than_eight_runs_are_refused_in_words(client: TestClient, number: int) -> None:
    query = "&".join(f"run=r{place}" for place in range(number))
    answer = client.get(f"/compare?{query}")
    assert answer.status_code == 400
    assert f"Choose two to 8 runs on the list of runs; {number} came." in answer.text


def test_a_run_that_is_not_there_is_404(client: TestClient) -> None:
    assert client.get("/compare?run=one&run=nothing").status_code == 404
    assert client.get("/compare/series").status_code == 404


def test_what_did_not_change_is_not_sent_again(client: TestClient) -> None:
    page = client.get("/compare?run=one&run=two").text
    digest = page.split('data-part="')[1].split('"')[0]
    assert client.get(f"/compare/live?run=one&run=two&have={digest}").text == ""
    assert 'id="part-compare"' in client.get("/compare/live?run=one&run=two").text


def test_the_best_depends_on_which_way_is_better_and_two_of_one_name_are_told_apart(
    written: Callable[..., Path],
) -> None:
    readers = [RunReader(written(f"r{number}", rounds=number) / f"r{number}" / "record.sqlite") for number in (2, 5)]
    held = [hold(reader, 1) for reader in readers]
    found = compare(["first", "second"], held, None, "")
    best = {name: [item.best for item in row] for name, row in found.figures}
    # The longer run is better in both: higher AUROC, lower loss.
    assert best["auroc"] == best["nll"] == [False, True]
    same = compare(["first", "second"], [held[0], held[0]], None, "")
    assert same.labels == ("r2 (first)", "r2 (second)")
    assert [item.best for item in dict(same.figures)["auroc"]] == [True, True]


def test_names_that_are_scripts_are_only_text(written: Callable[..., Path]) -> None:
    script = "<script>alert(1)</script>"
    written("plain", rounds=1)
    runs = written("odd<b>", rounds=1)
    with sqlite3.connect(runs / "odd<b>" / "record.sqlite") as record:
        record.execute("UPDATE runs SET name = ?, strategy = ?", (script, script))
    with TestClient(create_app(runs), base_url=LOCAL) as client:
        pages = [
            client.get("/compare", params={"run": ["plain", "odd<b>"]}).text,
            client.get("/compare/curves/auroc", params={"run": ["plain", "odd<b>"]}).text,
            client.get("/", params={"q": script}).text,
        ]
    for page in pages:
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page
