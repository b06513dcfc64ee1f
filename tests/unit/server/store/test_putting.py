"""Rows are put into their tables at once, over those of the same key (server/store/putting.py)."""

from __future__ import annotations

from types import ModuleType

from sqlalchemy import event

from server.store import RunReader, RunWriter


def test_what_is_told_again_replaces_what_was_told(database: str, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_metrics(1, "global", "val", {"auroc": (0.5, 0.4, 0.6), "ece": 0.1})
        writer.record_metrics(1, "global", "val", {"auroc": 0.7})
        writer.record_details(1, [("global", "val", "lee", {"num_images": 1})])
        writer.record_details(1, [("global", "val", "lee", {"num_images": 2})])
        writer.record_site(1, "msk", outcome="late", reason="slow")
        writer.record_site(1, "msk", num_examples=4)
        with RunReader(database) as reader:
            found = {row.name: (row.value, row.lower, row.upper) for row in reader.metrics(run_id)}
            assert found == {"auroc": (0.7, None, None), "ece": (0.1, None, None)}
            assert [row.value for row in reader.details(run_id, kind="lee")] == [{"num_images": 2}]
            (site,) = reader.sites(run_id)
            assert (site.outcome, site.reason, site.num_examples) == ("ok", None, 4)


def test_two_names_that_are_kept_alike_are_one_row_and_the_later_counts(database: str, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_match(1, "msk", gains={"deep": 0.1, "de\x00ep": 0.2})
        with RunReader(database) as reader:
            assert [(row.layer, row.gain) for row in reader.matches(run_id)] == [("deep", 0.2)]


def test_nothing_to_put_is_no_error(database: str, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_metrics(1, "global", "val", {})
        with RunReader(database) as reader:
            assert reader.metrics(run_id) == ()


def test_a_site_s_figures_take_one_question_to_the_database(database: str, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        writer.start_round(1)
        asked: list[str] = []
        event.listen(writer._engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
        writer.record_metrics(1, "msk", "val", {f"figure{number}": 0.5 for number in range(40)})
        assert [statement.split()[0] for statement in asked] == ["INSERT", "UPDATE"]
