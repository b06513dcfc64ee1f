"""Narrow questions to a record answer as the whole tables do, in SQLite and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from server.store import RunReader, RunWriter
from server.store.looks import (
    best_validation,
    named_figures,
    round_figures,
    round_models,
    round_row,
    site_digests,
    site_rounds,
)


@pytest.fixture
def reader(database: str | Path, believable: ModuleType) -> RunReader:
    believable.write_run(database, rounds=5)
    believable.write_run(database, rounds=2, name="another")
    return RunReader(database)


def test_models_are_those_of_finished_rounds_newest_first(reader: RunReader) -> None:
    models = round_models(reader, 1)
    assert [item.server_round for item in models] == [5, 4, 3, 2, 1]
    assert [item.sha256 for item in models] == [row.model_sha256 for row in reader.rounds(1)][::-1]


def test_an_open_round_has_no_model_yet(database: str | Path, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        believable.add_round(writer, 1)
        writer.start_round(2)
        with RunReader(database) as reader:
            assert [item.server_round for item in round_models(reader, writer.run_id)] == [1]


def test_one_round_is_the_same_as_among_all(reader: RunReader) -> None:
    assert round_row(reader, 1, 3) == reader.rounds(1)[2]
    assert round_row(reader, 1, 9) is None


def test_the_best_round_is_that_of_validation_images(reader: RunReader) -> None:
    rows = [row for row in reader.metrics(1, name="auroc", split="val", scope="global") if row.value is not None]
    assert best_validation(reader, 1) == max(rows, key=lambda row: row.value or 0.0)


def test_of_equal_rounds_the_earliest_is_best_and_undefined_is_none(
    database: str | Path, believable: ModuleType
) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        for number, value in ((1, None), (2, 0.8), (3, 0.8), (4, None)):
            writer.start_round(number)
            writer.record_metrics(number, "global", "val", {"auroc": value})
            writer.finish_round(number)
        with RunReader(database) as reader:
            best = best_validation(reader, writer.run_id)
    assert best is not None
    assert best.server_round == 2


def test_a_run_without_figures_has_no_best_round(database: str | Path, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        with RunReader(database) as reader:
            assert best_validation(reader, writer.run_id) is None


def test_figures_of_a_round_are_those_of_the_table(reader: RunReader) -> None:
    every = reader.metrics(1)
    assert set(round_figures(reader, 1, 5)) == {row for row in every if row.server_round == 5}


def test_named_figures_are_of_the_rounds_asked_for(reader: RunReader) -> None:
    found = named_figures(reader, 1, "auroc", [2, 5])
    assert {(row.scope, row.split, row.server_round) for row in found} == {
        ("global", "val", 2),
        ("global", "val", 5),
        ("external", "external", 5),
    }
    assert named_figures(reader, 1, "auroc", []) == ()


def test_rounds_of_one_site_or_of_all_in_one_round(reader: RunReader) -> None:
    every = reader.sites(1)
    assert site_rounds(reader, 1, site="msk") == tuple(row for row in every if row.site == "msk")
    assert site_rounds(reader, 1, server_round=2) == tuple(row for row in every if row.server_round == 2)


def test_sites_are_counted_as_the_rows_say(reader: RunReader) -> None:
    every = reader.sites(1)
    for digest in site_digests(reader, 1):
        trained = [row for row in every if row.site == digest.site and row.phase == "train"]
        assert digest.rounds_all == len(trained) == 5
        assert digest.rounds_ok == sum(row.outcome == "ok" for row in trained)
        assert digest.last_round == 5
        assert digest.epsilon == next(row.epsilon for row in reversed(trained) if row.epsilon is not None)
        assert digest.num_examples == trained[-1].num_examples


def test_a_failed_phase_is_not_made_good_by_the_other(database: str | Path, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer, sites=("a", "b"))
        writer.start_round(1)
        writer.record_site(1, "a", phase="train", outcome="ok")
        writer.record_site(1, "a", phase="evaluate", outcome="late", reason="slow")
        writer.record_site(1, "b", phase="train", outcome="failed", reason="no room")
        writer.record_site(1, "b", phase="evaluate", outcome="ok")
        with RunReader(database) as reader:
            found = {item.site: (item.outcome, item.reason) for item in site_digests(reader, writer.run_id)}
    assert found == {"a": ("late", "slow"), "b": ("failed", "no room")}


def test_a_run_without_a_round_has_no_site_yet_and_an_open_one_ends_for_nobody(
    database: str | Path, believable: ModuleType
) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        with RunReader(database) as reader:
            assert site_digests(reader, writer.run_id) == ()
        believable.add_round(writer, 1)
        writer.start_round(2)
        writer.record_site(2, "msk", num_examples=7)
        with RunReader(database) as reader:
            msk = next(item for item in site_digests(reader, writer.run_id) if item.site == "msk")
            assert (msk.last_round, msk.num_examples) == (2, 7)
            assert msk.last_ok == reader.rounds(writer.run_id)[0].finished
