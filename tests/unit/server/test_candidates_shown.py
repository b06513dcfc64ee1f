"""Candidates in the record, on the pages and in the summary."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from sqlalchemy import text

from server.dashboard.candidates import candidate_table
from server.dashboard.exports import as_csv, rows_of
from server.dashboard.report import render_report
from server.store import CandidateRow, RoundRow, RunReader, RunWriter
from server.store.schema import connect


def found(loss: float, num_examples: int = 10) -> dict[str, float | int | None]:
    return {"num_examples": num_examples, "loss": loss, "accuracy": 0.5, "auroc": None}


def begin(path: Path) -> RunWriter:
    writer = RunWriter(path, heartbeat=0)
    writer.start_run(
        "r", config={}, environment={}, strategy="opm-gated", seed=0, rounds_planned=2, data_name="d", phantom=True,
        classes=("x",), sites=("a", "b"),
    )  # fmt: skip
    return writer


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.sqlite"
    with begin(path) as writer:
        for server_round, chosen in ((1, "average"), (2, "opm")):
            writer.start_round(server_round)
            writer.record_candidate(server_round, "average", {"a": found(0.5), "b": found(0.7, 30)})
            writer.record_candidate(server_round, "opm", {"a": found(0.6), "b": found(0.1, 30)})
            writer.record_candidate(server_round, "greedy_soup/a", {"a": found(0.01), "b": found(math.inf)})
            writer.finish_round(server_round, notes={"chosen": chosen, "regret": 0.1})
        writer.finish_run("finished")
    return path


def test_candidates_come_back_as_they_were_written_and_an_infinite_loss_is_undefined(record):
    with RunReader(record) as reader:
        rows = reader.candidates(1, 2)
        assert len(reader.candidates(1)) == 2 * len(rows)
    assert rows[0] == CandidateRow(2, "average", "a", 10, 0.5, 0.5, None)
    assert {(row.candidate, row.site): row.loss for row in rows}["greedy_soup/a", "b"] is None


def test_a_round_that_is_begun_again_forgets_its_candidates(record):
    with RunWriter(record, heartbeat=0) as writer:
        writer.resume_run()
        writer.start_round(2)
        writer.finish_run("stopped")
    with RunReader(record) as reader:
        assert {row.server_round for row in reader.candidates(1)} == {1}


def test_a_record_of_an_earlier_version_has_no_candidates(record):
    engine = connect(record)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE candidates"))
    engine.dispose()
    with RunReader(record) as reader:
        assert reader.candidates(1) == ()
        assert "Candidates" not in render_report(reader, 1)


def test_the_table_has_the_best_first_and_says_who_was_taken(record):
    with RunReader(record) as reader:
        table = candidate_table(reader.candidates(1), reader.rounds(1))
    assert table is not None
    assert table.server_round == 2
    assert [line.name for line in table.lines] == ["opm", "average", "greedy_soup/a"]
    assert [line.taken for line in table.lines] == [True, False, False]
    assert table.lines[0].mean == pytest.approx((10 * 0.6 + 30 * 0.1) / 40)
    assert table.lines[2].mean is None
    assert (table.regret, table.wins) == (0.1, (("average", 1), ("opm", 1)))


def test_a_run_without_candidates_has_no_table():
    row = RoundRow(1, 0.0, 1.0, "ok", None, None, None, None, {}, None)
    assert candidate_table((), (row,)) is None


def test_report_and_csv_show_them(record):
    with RunReader(record) as reader:
        page = render_report(reader, 1)
        lines = as_csv("candidates", rows_of(reader, 1, "candidates")).splitlines()
    assert 'id="candidates"' in page
    assert '<span class="tag">taken</span>' in page
    assert "loses 0.100" in page
    assert lines[0] == "server_round,candidate,site,num_examples,loss,accuracy,auroc"
    assert len(lines) == 1 + 12
