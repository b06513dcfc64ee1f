"""What a record does not take, on SQLite and on PostgreSQL (server/store/writer.py, migrating.py, trouble.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, create_engine, inspect, text
from sqlalchemy.exc import DataError, IntegrityError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from popmi_core.config import parse_config
from popmi_core.errors import RecordError, RunError
from popmi_core.protocol import Report, RunPlan
from server.results import Evaluation, Judgement, MatchedUpdate, RoundResult, SiteOutcome
from server.rounds.record import RunRecorder
from server.store import RunReader, RunWriter
from server.store.schema import SiteRound, connect
from server.store.trouble import passes
from server.told import write_told

LARGEST = 2**63 - 1


@pytest.fixture
def writer(database: str, tmp_path: Path) -> Iterator[RunWriter]:
    with RunWriter(database, heartbeat=0) as made:
        made.start_run(
            "trial", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=True,
            classes=["mel", "nv"], sites=["a", "b"],
        )  # fmt: skip
        made.start_round(1)
        yield made
        made.finish_run("finished")


def recorder(writer: RunWriter, tmp_path: Path) -> RunRecorder:
    plan = RunPlan(
        run="trial", config=parse_config({"rounds": 3}), folder=str(tmp_path), data_name="d", phantom=True,
        classes=("mel", "nv"), lineup=(), patience=3600.0,
    )  # fmt: skip
    return RunRecorder(plan, writer, 0)


def done(reports: dict[str, Report], **changes) -> RoundResult:
    outcomes = [SiteOutcome(site, "ok", bytes_up=5, bytes_down=6, report=report) for site, report in reports.items()]
    return RoundResult(
        **{
            "server_round": 1, "seconds": 1.0, "seconds_combine": 0.1, "train": outcomes, "evaluate": outcomes,
            "matched": [], "fused": None, "note": "", "evaluation": Evaluation(), **changes,
        }
    )  # fmt: skip


def report(site: str, **unchecked) -> Report:
    """Return a report as it would be without the bounds of the protocol."""
    return Report(run="trial", server_round=1, site=site, num_examples=7).model_copy(update=unchecked)


def test_what_a_large_model_weighs_in_all_is_recorded(writer: RunWriter, database: str) -> None:
    writer.record_site(1, "a", bytes_up=344_000_000 * 10, bytes_down=LARGEST)
    with RunReader(database) as reader:
        (row,) = reader.sites(writer.run_id)
        assert (row.bytes_up, row.bytes_down) == (3_440_000_000, LARGEST)


def refused(database: str) -> list[Callable[[RunWriter], None]]:
    writes: list[Callable[[RunWriter], None]] = [lambda writer: writer.record_site(1, "a", num_examples=2**63)]
    if database.startswith("postgresql"):
        # SQLite keeps numbers of 64 bits and names of any length.
        writes += [
            lambda writer: writer.record_site(1, "a", num_examples=3_000_000_000),
            lambda writer: writer.record_metrics(1, "a", "val", {"x" * 61: 0.5}),
            lambda writer: writer.record_metrics(1, "a", "val", {"x\x00": 0.5}),
            lambda writer: writer.record_match(1, "a", gains={"w" * 201: 0.5}),
        ]
    return writes


def test_what_no_table_takes_is_refused_at_once_and_not_waited_for(
    writer: RunWriter, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.patience.time.sleep", lambda _: pytest.fail("it was waited for"))
    for write in refused(database):
        with pytest.raises(RecordError, match=r"does not take what is to be written: .*no waiting helps"):
            recorder(writer, tmp_path).patiently(lambda write=write: write(writer))
    # The next write goes well.
    writer.record_site(1, "a", num_examples=7)


def test_one_site_s_impossible_figures_cost_the_others_nothing(writer: RunWriter, database: str) -> None:
    told = done(
        {"a": report("a", metrics={"train.loss": 0.5}), "b": report("b", num_examples=2**63)},
        matched=[MatchedUpdate("b", {}, 7, {"w" * 201: 0.5}), MatchedUpdate("a", {}, 7, {"w": 0.25})],
        judged={"average": {"b": Judgement(2**63, 0.5), "a": Judgement(7, 0.5)}},
        evaluation=Evaluation(sites={"b": {"val": {"x" * 61: 0.5}}, "a": {"val": {"nll": 0.5}}}),
    )
    # A round that waits for room is written again and again; its diary is not.
    refused_lines = [write_told(writer, told, {"val": {"nll": 0.5}}) for _ in range(3)][-1]
    writer.finish_round(1, remarks=refused_lines)
    with RunReader(database) as reader:
        rows = {(row.site, row.phase): row for row in reader.sites(writer.run_id)}
        assert rows["a", "train"].num_examples == rows["a", "evaluate"].num_examples == 7
        # Its outcome is the server's own word; what it told of itself is left out.
        left = rows["b", "train"]
        assert (left.outcome, left.num_examples, left.bytes_up) == ("ok", None, 5)
        assert {(row.site, row.layer) for row in reader.matches(writer.run_id, 1)} >= {("a", "w")}
        events = [row.text for row in reader.events(writer.run_id) if "figures it told are left out" in row.text]
    assert events
    assert events == refused_lines
    assert all(line.startswith("b: ") for line in events)


def test_a_record_that_takes_nothing_at_all_is_the_run_s_own_trouble(writer: RunWriter, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise RecordError("record r does not take what is to be written: no rights")

    monkeypatch.setattr(writer, "record_site", refuse)
    monkeypatch.setattr(writer, "event", refuse)
    with pytest.raises(RecordError, match="no rights"):
        write_told(writer, done({"a": report("a")}), {})


def test_a_record_that_is_away_is_not_a_site_s_fault(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args, **kwargs):
        raise RunError("record r cannot be written: no connection")

    monkeypatch.setattr(writer, "record_site", away)
    with pytest.raises(RunError, match="no connection"):
        write_told(writer, done({"a": report("a")}), {})


@pytest.mark.parametrize("kind", [OperationalError, InternalError])
def test_no_room_and_no_server_pass(kind) -> None:
    assert passes(kind("INSERT", {}, Exception("disk full")))
    assert passes(PoolTimeout())
    assert passes(ProgrammingError("INSERT", {}, Exception("gone"), connection_invalidated=True))


@pytest.mark.parametrize("kind", [DataError, IntegrityError, ProgrammingError])
def test_what_the_database_refuses_does_not_pass(kind) -> None:
    assert not passes(kind("INSERT", {}, Exception("out of range")))
    assert not passes(OverflowError("too large"))


# The table as releases before this one made it.
OLD_SITE_ROUNDS = """
CREATE TABLE site_rounds (
    run_id INTEGER NOT NULL, round INTEGER NOT NULL, site VARCHAR(200) NOT NULL, phase VARCHAR(20) NOT NULL,
    outcome VARCHAR(20) NOT NULL, reason TEXT, num_examples INTEGER, seconds FLOAT, bytes_up INTEGER,
    bytes_down INTEGER, epsilon FLOAT, train_loss FLOAT, PRIMARY KEY (run_id, round, site, phase)
)
"""


def test_the_table_of_an_older_release_is_widened_and_keeps_its_rows(database: str) -> None:
    engine = connect(database)
    with engine.begin() as connection:
        connection.execute(text(OLD_SITE_ROUNDS))
        connection.execute(
            text(
                "INSERT INTO site_rounds (run_id, round, site, phase, outcome, bytes_up) "
                "VALUES (1, 1, 'a', 'train', 'ok', 9)"
            )
        )
    RunWriter(database, heartbeat=0).close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE site_rounds SET bytes_down = 3440000000"))
        assert connection.execute(text("SELECT site, bytes_up, bytes_down FROM site_rounds")).all() == [
            ("a", 9, 3_440_000_000)
        ]
    if database.startswith("postgresql"):
        types = {column["name"]: column["type"] for column in inspect(engine).get_columns(SiteRound.__tablename__)}
        assert isinstance(types["bytes_up"], BigInteger)
        assert isinstance(types["bytes_down"], BigInteger)
    engine.dispose()


def test_a_table_in_another_s_hands_is_trouble_that_passes(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.migrating.LOCK_SECONDS", 1)
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        connection.execute(text(OLD_SITE_ROUNDS))
    with engine.begin() as holder:
        holder.execute(text("SELECT * FROM site_rounds"))
        with pytest.raises(RunError, match="cannot be written: canceling statement due to lock timeout") as caught:
            RunWriter(postgres, heartbeat=0)
    assert not isinstance(caught.value, RecordError)
    engine.dispose()
