"""The record keeps what it is given, survives a kill, and says what is wrong."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sqlalchemy.schema import CreateTable

from popmi_core.errors import ConfigError, RunError
from server.store import RunReader, RunWriter
from server.store.schema import Base

KILLED = """
import sys, time
from believable_run import add_round, begin
from server.store import RunWriter
writer = RunWriter(sys.argv[1], heartbeat=0)
begin(writer)
add_round(writer, 1)
writer.start_round(2)
writer.record_site(2, "msk", num_examples=3)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record.sqlite"


def test_a_finished_run_reads_back_as_written(written: Callable[..., Path]) -> None:
    with RunReader(written(rounds=4) / "opm-seed0" / "record.sqlite") as reader:
        run = reader.run()
        assert (run.status, run.rounds_done, run.rounds_planned, run.phantom) == ("finished", 4, 4, True)
        assert run.sites[0] == "msk"
        assert run.config["local"] == {"epochs": 1, "learning_rate": 1e-3}
        assert [row.server_round for row in reader.rounds(run.id)] == [1, 2, 3, 4]
        assert reader.rounds(run.id, since=4)[0].model_sha256 == "04" * 32
        late = [row for row in reader.sites(run.id) if row.outcome == "late"]
        assert [(row.server_round, row.site, row.reason) for row in late] == [(3, "rosendahl", "no answer within 60 s")]
        assert {row.layer for row in reader.matches(run.id, 1)} >= {"blocks.0.attn", "blocks.2.mlp"}
        assert any("msk: train failed: out of memory" in row.text for row in reader.events(run.id))


def test_undefined_figures_are_null_and_never_zero(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_metrics(1, "global", "val", {"auroc": math.nan, "nll": math.inf, "ece": (0.2, math.nan, 0.3)})
        with RunReader(record) as reader:
            found = {row.name: (row.value, row.lower, row.upper) for row in reader.metrics(run_id)}
    assert found == {"auroc": (None, None, None), "nll": (None, None, None), "ece": (0.2, None, 0.3)}


def test_numbers_of_numpy_are_stored_as_numbers(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer, seed=np.int64(7), config={"epsilon": np.float32("nan"), "n": np.int64(3)})
        writer.start_round(1)
        writer.record_site(1, "msk", num_examples=np.int64(5), seconds=np.float32(0.5))
        with RunReader(record) as reader:
            row = reader.sites(run_id)[0]
            assert (row.num_examples, row.seconds) == (5, 0.5)
            assert (reader.run().seed, reader.run().config) == (7, {"epsilon": None, "n": 3})


def test_text_that_no_database_takes_is_cleaned(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_site(1, "s\x00ite", outcome="failed", reason="half \ud800 " + "long " * 2000)
        with RunReader(record) as reader:
            row = reader.sites(run_id)[0]
    assert row.site == "site"
    assert row.reason is not None
    assert row.reason.startswith("half ? long")
    assert len(row.reason) == 4000


def test_a_second_word_on_the_same_site_and_phase_replaces_the_first(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)
        writer.record_site(1, "msk", outcome="late", reason="slow")
        writer.record_site(1, "msk", num_examples=5)
        with RunReader(record) as reader:
            assert [(row.outcome, row.num_examples) for row in reader.sites(run_id)] == [("ok", 5)]


def test_curves_come_by_scope_and_round(written: Callable[..., Path]) -> None:
    with RunReader(written(rounds=3) / "opm-seed0" / "record.sqlite") as reader:
        curves = reader.series(reader.run().id, "auprc", "val")
    assert curves["global"][1] is None
    assert set(curves["global"]) == {1, 2, 3}
    # rosendahl was late in round 3: a gap, not a zero
    assert set(curves["rosendahl"]) == {1, 2}


def test_a_killed_process_leaves_a_readable_file_that_resumes_at_the_last_whole_round(record: Path) -> None:
    support = Path(__file__).parents[2] / "support"
    paths = os.pathsep.join([str(support), *sys.path])
    command = [sys.executable, "-c", KILLED, str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    with RunReader(record) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("running", 1)
        assert [row.outcome for row in reader.rounds(1)] == ["ok", "open"]
        with RunWriter(record, heartbeat=0) as writer:
            assert writer.resume_run() == 1
            assert [row.server_round for row in reader.rounds(1)] == [1]
            assert {row.server_round for row in reader.sites(1)} == {1}
            writer.start_round(2)
            writer.finish_round(2)
            writer.finish_run("finished")
        assert (reader.run().status, reader.run().rounds_done) == ("finished", 2)


def test_a_round_begun_anew_forgets_its_first_attempt(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        believable.add_round(writer, 1)
        writer.start_round(1)
        with RunReader(record) as reader:
            assert reader.sites(run_id) == ()
            assert reader.metrics(run_id) == ()
            assert reader.rounds(run_id)[0].finished is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "stopped", "the record was closed before the run ended"),
        (KeyboardInterrupt(), "stopped", "interrupted by the operator"),
        (RunError("no site ever answered"), "failed", "no site ever answered"),
        (ValueError("patient-0042.png"), "failed", "unexpected ValueError"),
    ],
)
def test_leaving_an_open_run_ends_it_honestly(
    record: Path, believable: ModuleType, error: BaseException | None, status: str, reason: str
) -> None:
    def run() -> None:
        with RunWriter(record, heartbeat=0) as writer:
            believable.begin(writer)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    with RunReader(record) as reader:
        assert (reader.run().status, reader.run().reason) == (status, reason)


def test_signs_of_life_come_without_news(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0.05) as writer, RunReader(record) as reader:
        run_id = believable.begin(writer)
        first = reader.pulses()[run_id]
        deadline = time.monotonic() + 5
        while (later := reader.pulses()[run_id]).heartbeat == first.heartbeat and time.monotonic() < deadline:
            time.sleep(0.02)
    assert later.heartbeat > first.heartbeat
    assert later.revision == first.revision


def test_every_write_is_news(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer, RunReader(record) as reader:
        run_id = believable.begin(writer)
        seen = [reader.pulses()[run_id].revision]
        for write in (
            lambda: writer.start_round(1),
            lambda: writer.record_site(1, "msk"),
            lambda: writer.record_metrics(1, "global", "val", {"auroc": 0.5}),
            lambda: writer.record_match(1, "msk", gains={"head": 0.1}, note={"head": "as is"}),
            lambda: writer.event("hello"),
            lambda: writer.finish_round(1),
            lambda: writer.finish_run("finished"),
        ):
            write()
            seen.append(reader.pulses()[run_id].revision)
    assert seen == sorted(set(seen))


def test_a_record_at_rest_is_one_plain_file(written: Callable[..., Path]) -> None:
    home = written() / "opm-seed0"
    assert [item.name for item in home.iterdir()] == ["record.sqlite"]


def test_wrong_words_and_wrong_order_are_refused(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        with pytest.raises(RunError, match=r"no run is open\. Call start_run"):
            writer.start_round(1)
        with pytest.raises(RunError, match="holds no such run to resume"):
            writer.resume_run()
        believable.begin(writer)
        with pytest.raises(RunError, match="round 5 was never started"):
            writer.finish_round(5)
        with pytest.raises(RunError, match="outcome 'fine' is unknown, expected one of ok"):
            writer.record_site(1, "msk", outcome="fine")
        with pytest.raises(RunError, match="phase 'test' is unknown"):
            writer.record_site(1, "msk", phase="test")
        with pytest.raises(RunError, match="status 'done' is unknown"):
            writer.finish_run("done")


def test_a_record_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written: unable to open database file"):
        RunWriter(tmp_path / "missing" / "record.sqlite")


def test_a_full_disk_loses_one_call_and_nothing_before_it(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        believable.add_round(writer, 1)
        with writer._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(RunError, match="cannot be written: database or disk is full"):
            _write_without_end(writer)
        with RunReader(record) as reader:
            assert reader.run(run_id).rounds_done == 1
        with writer._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")


def test_a_database_server_without_tables_holds_no_run_yet(
    record: Path, believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(record).close()
    monkeypatch.setattr("sqlalchemy.dialects.sqlite.pysqlite.SQLiteDialect_pysqlite.name", "served")
    with RunReader(record) as reader:
        assert reader.runs() == ()
        assert reader.pulses() == {}
    monkeypatch.undo()
    with RunWriter(record, heartbeat=0) as writer:
        believable.begin(writer)
    monkeypatch.setattr("sqlalchemy.dialects.sqlite.pysqlite.SQLiteDialect_pysqlite.name", "served")
    with RunReader(record) as reader:
        assert len(reader.runs()) == len(reader.pulses()) == 1


@pytest.mark.parametrize("content", [b"not a database at all" * 50, b""])
def test_a_damaged_record_is_an_error_with_its_reason(record: Path, content: bytes) -> None:
    record.write_bytes(content)
    with RunReader(record) as reader, pytest.raises(RunError, match="cannot be read"):
        reader.run()


def test_a_missing_run_and_a_missing_record_are_told_apart(record: Path) -> None:
    with RunReader(record) as reader, pytest.raises(RunError, match="cannot be read: unable to open"):
        reader.runs()
    RunWriter(record, heartbeat=0).close()
    with RunReader(record) as reader, pytest.raises(RunError, match="holds no run 3"):
        reader.run(3)


def test_a_locked_record_is_given_up_after_a_moment(written: Callable[..., Path]) -> None:
    path = written() / "opm-seed0" / "record.sqlite"
    with sqlite3.connect(path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with RunReader(path) as reader, pytest.raises(RunError, match="database is locked"):
            reader.run()
        holder.rollback()


def test_odd_characters_in_a_path_are_only_characters(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "a?b#c %20 ü"
    home.mkdir()
    believable.write_run(home / "record.sqlite", rounds=1)
    with RunReader(home / "record.sqlite") as reader:
        assert reader.run().status == "finished"
    assert [item.name for item in home.iterdir()] == ["record.sqlite"]


@pytest.mark.parametrize("url", ["postgresql+nodriver://me:secret@db/popmi", "nonsense://me:secret@db", "://"])
def test_a_database_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"database .* cannot be used: .*postgresql\+psycopg://") as caught:
        RunReader(url)
    assert "secret" not in str(caught.value)


def test_the_tables_are_spelled_for_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql

    for table in Base.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_record_and_pages_load_without_torch_and_flower() -> None:
    code = "import sys, server.store, server.dashboard.app; print(sorted({'torch', 'flwr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_with_path())
    assert done.stdout == "[]\n"


def _write_without_end(writer: RunWriter) -> None:
    for _ in range(1000):
        writer.event("x" * 4000)


def _with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_diary_tells_of_a_site_once_with_the_end_of_the_round(record: Path, believable: ModuleType) -> None:
    with RunWriter(record, heartbeat=0) as writer:
        run_id = believable.begin(writer)
        writer.start_round(1)

        def told() -> list[str]:
            with RunReader(record) as reader:
                return [row.text for row in reader.events(run_id) if row.server_round == 1]

        for _ in range(3):
            writer.record_site(1, "vienna", phase="evaluate", outcome="late", reason="no answer")
            writer.record_site(1, "vienna", outcome="failed", reason="out of memory")
            writer.record_site(1, "msk")
        assert told() == []
        writer.finish_round(1)
        assert told() == ["vienna: train failed: out of memory", "vienna: evaluate late: no answer"]
