"""The SuperLink waits for its database and spares it (server/control/patient.py)."""

from __future__ import annotations

import sqlite3
import threading
from types import SimpleNamespace

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.middleware.base import BaseHTTPMiddleware
from superlink_state import NODE, OTHER, link_state

from popmi_core.errors import SetupError
from server.control import patient


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own settings are back after each test."""
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    monkeypatch.setattr(sql_mixin, "create_engine", sql_mixin.create_engine)
    monkeypatch.setattr(BaseHTTPMiddleware, "__call__", BaseHTTPMiddleware.__call__)
    monkeypatch.setattr(fleet_handlers, "pull_messages", fleet_handlers.pull_messages)
    monkeypatch.setattr(SqlLinkState, "get_message_res", SqlLinkState.get_message_res)
    for owner, name in ((SqlLinkState, "_claim_message_ins_rows"), (SqlCoreState, "_cleanup_expired_task_tokens")):
        monkeypatch.setattr(owner, name, vars(owner)[name])


def connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    sql_mixin._set_sqlite_pragmas(connection, None)
    return connection


def test_every_connection_waits_a_minute_and_keeps_flowers_other_settings(tmp_path) -> None:
    before = connected(str(tmp_path / "a.db")).execute("PRAGMA synchronous").fetchone()
    patient.wait_longer()
    connection = connected(str(tmp_path / "b.db"))
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (60_000,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == before


def test_a_writer_waits_for_one_that_is_slow(tmp_path) -> None:
    patient.wait_longer()
    first, second = connected(str(tmp_path / "a.db")), connected(str(tmp_path / "a.db"))
    first.execute("CREATE TABLE t (x)")
    first.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, lambda: first.execute("COMMIT"))
    done.start()
    second.execute("INSERT INTO t VALUES (1)")
    done.join()
    assert first.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_the_superlink_starts_with_the_longer_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, starlettes, flowers = [], BaseHTTPMiddleware.__call__, fleet_handlers.pull_messages
    monkeypatch.setattr(patient, "flower_superlink", lambda: seen.append(dict(sql_mixin.SQLITE_PRAGMAS)))
    patient.main()
    assert seen[0]["busy_timeout"] == "60000"
    assert "claimed" in SqlLinkState._claim_message_ins_rows.__name__
    assert BaseHTTPMiddleware.__call__ is not starlettes
    assert fleet_handlers.pull_messages is not flowers


def test_another_flower_that_sets_it_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("journal_mode", "WAL"),))
    with pytest.raises(SetupError, match=r"sets no busy_timeout, expected flwr 1\.41"):
        patient.wait_longer()


def kept_state(path) -> SqlLinkState:
    return link_state(path, ObjectStoreFactory().store())


def test_a_look_that_finds_nothing_needs_no_lock(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("busy_timeout", "0"), ("journal_mode", "WAL")))
    patient.spare_the_database()
    state = kept_state(tmp_path / "state.db")
    writer = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert state._claim_message_ins_rows(OTHER, 1) == []
    with pytest.raises(Exception, match="database is locked"):
        state._claim_message_ins_rows(NODE, 1)


def test_a_message_is_handed_out_once_and_to_its_node_only(tmp_path) -> None:
    patient.spare_the_database()
    state = kept_state(tmp_path / "state.db")
    assert state._claim_message_ins_rows(OTHER, 1) == []
    assert [row["message_id"] for row in state._claim_message_ins_rows(NODE, 1)] == ["m"]
    assert state._claim_message_ins_rows(NODE, 1) == []


def test_flower_alone_takes_the_lock_for_every_look_so_this_is_still_needed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("busy_timeout", "0"), ("journal_mode", "WAL")))
    state = kept_state(tmp_path / "state.db")
    writer = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(Exception, match="database is locked"):
        state._claim_message_ins_rows(OTHER, 1)


def test_lapsed_tasks_are_looked_for_once_a_second_in_each_database(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, now = [], [100.0]
    monkeypatch.setattr(SqlCoreState, "_cleanup_expired_task_tokens", seen.append)
    patient.spare_the_database(lambda: now[0])
    for state, moment in (("a", 100.0), ("a", 100.5), ("b", 100.5), ("a", 101.0), ("a", 101.9)):
        now[0] = moment
        SqlCoreState._cleanup_expired_task_tokens(state)  # type: ignore[arg-type]
    assert seen == ["a", "b", "a"]


def test_connections_stay_open_but_a_database_in_memory_keeps_its_one(tmp_path) -> None:
    patient.spare_the_database()
    assert kept_state(tmp_path / "state.db")._engine.pool.size() == patient.CONNECTIONS
    kept = SqlLinkState(":memory:", SimpleNamespace(), ObjectStoreFactory().store())
    kept.initialize()
    assert type(kept._engine.pool).__name__ == "StaticPool"


def test_another_flower_that_looks_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SqlLinkState, "_claim_message_ins_rows")
    with pytest.raises(SetupError, match=r"has no _claim_message_ins_rows, expected flwr 1\.41"):
        patient.spare_the_database()
