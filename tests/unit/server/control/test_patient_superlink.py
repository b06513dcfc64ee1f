"""The SuperLink waits for its database instead of answering that it is locked (server/control/patient.py)."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from flwr.supercore import sql_mixin

from popmi_core.errors import SetupError
from server.control import patient


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own settings are back after each test."""
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)


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
    seen = []
    monkeypatch.setattr(patient, "flower_superlink", lambda: seen.append(dict(sql_mixin.SQLITE_PRAGMAS)))
    patient.main()
    assert seen[0]["busy_timeout"] == "60000"


def test_another_flower_that_sets_it_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("journal_mode", "WAL"),))
    with pytest.raises(SetupError, match=r"sets no busy_timeout, expected flwr 1\.41"):
        patient.wait_longer()
