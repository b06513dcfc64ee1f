"""Where the centre is, and how it is opened and written (server/centre/opening.py)."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from popmi_core.errors import ConfigError, RecordError, RunError
from server.centre import Account, Attempt, AuditLine, Board, LoginSession, Order, centre_database, open_centre, writing
from server.centre.schema import Secret


def person(name: str = "ada") -> Account:
    return Account(name=name, role="admin", password="hash", created=1.0)


def test_the_centre_is_in_the_home_unless_a_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPMI_DATABASE", raising=False)
    assert centre_database(tmp_path) == tmp_path / "centre.sqlite"
    monkeypatch.setenv("POPMI_DATABASE", " ")
    assert centre_database(tmp_path) == tmp_path / "centre.sqlite"
    monkeypatch.setenv("POPMI_DATABASE", "postgresql+psycopg://popmi@db/popmi")
    assert centre_database(tmp_path) == "postgresql+psycopg://popmi@db/popmi"


def test_every_table_keeps_what_it_is_given(database: str) -> None:
    engine = open_centre(database)
    with writing(engine) as session:
        session.add(person())
        session.flush()
        session.add_all(
            [
                LoginSession(
                    digest="d" * 64, account_id=1, csrf="c", created=1.0, seen=1.0, expires=2.0, address="::1", agent=""
                ),
                Attempt(key="name:ada", time=1.5),
                Order(kind="stop", arguments={"run": "a"}, who="ada", via="page", created=1.0),
                Board(key="sites", value=[{"name": "<b>"}], time=1.0),
                AuditLine(number=1, time=1.0, event="run.started", digest="e" * 64, line="{}"),
                Secret(name="first-admin", digest="f" * 64, expires=9.0),
            ]
        )
    engine.dispose()
    engine = open_centre(database)
    with Session(engine) as session:
        account = session.scalars(select(Account)).one()
        assert (account.name, account.disabled) == ("ada", False)
        order = session.scalars(select(Order)).one()
        assert (order.state, order.answer, order.arguments) == ("waiting", None, {"run": "a"})
        assert session.get(Board, "sites").value == [{"name": "<b>"}]
        assert session.get(AuditLine, 1).who is None
    engine.dispose()


def test_an_account_that_goes_takes_its_sessions_along(database: str) -> None:
    engine = open_centre(database)
    with writing(engine) as session:
        session.add(person())
        session.flush()
        session.add(
            LoginSession(digest="d", account_id=1, csrf="c", created=1.0, seen=1.0, expires=2.0, address="", agent="")
        )
    with writing(engine) as session:
        session.execute(text("DELETE FROM accounts"))
    with Session(engine) as session:
        assert session.scalars(select(LoginSession)).all() == []
    engine.dispose()


def test_two_accounts_of_one_name_are_refused(database: str) -> None:
    engine = open_centre(database)
    with writing(engine) as session:
        session.add(person())
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.add(person())
    engine.dispose()


def test_an_error_takes_back_all_that_was_written_with_it(database: str) -> None:
    engine = open_centre(database)

    def fail() -> None:
        with writing(engine) as session:
            session.add(person())
            session.flush()
            raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        fail()
    with Session(engine) as session:
        assert session.scalars(select(Account)).all() == []
    engine.dispose()


def test_threads_that_count_at_once_lose_nothing(tmp_path: Path) -> None:
    engine = open_centre(tmp_path / "centre.sqlite")
    with writing(engine) as session:
        session.add(Board(key="count", value=0, time=0.0))

    def count() -> None:
        for _ in range(10):
            with writing(engine) as session:
                session.get_one(Board, "count").value += 1

    threads = [threading.Thread(target=count) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with Session(engine) as session:
        assert session.get_one(Board, "count").value == 80
    engine.dispose()


def test_a_file_with_password_hashes_is_its_user_s_only(tmp_path: Path) -> None:
    path = tmp_path / "centre.sqlite"
    engine = open_centre(path)
    with writing(engine) as session:
        session.add(person())
        assert {item.stat().st_mode & 0o777 for item in tmp_path.iterdir()} == {0o600}
        assert path.with_name("centre.sqlite-wal").exists()
    engine.dispose()


def test_a_centre_that_is_there_keeps_the_rights_its_owner_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "centre.sqlite"
    open_centre(path).dispose()
    path.chmod(0o660)
    open_centre(f"sqlite:///{path}").dispose()
    assert path.stat().st_mode & 0o777 == 0o660


def test_a_centre_out_of_reach_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"centre .*cannot be opened: unable to open database file.*Check that"):
        open_centre(tmp_path / "missing" / "centre.sqlite")
    with pytest.raises(RunError, match="cannot be opened") as caught:
        open_centre("postgresql+psycopg://popmi:secret@/popmi?host=/nowhere/at/all")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot be used"):
        open_centre("nonsense://db")


def test_a_file_that_is_no_database_is_refused_for_good(tmp_path: Path) -> None:
    (tmp_path / "centre.sqlite").write_bytes(b"not a database at all" * 50)
    with pytest.raises(RecordError, match="refuses its tables: file is not a database"):
        open_centre(tmp_path / "centre.sqlite")


def test_a_newer_release_s_centre_is_refused(database: str) -> None:
    engine = open_centre(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE centre_version SET version_num = '0099'"))
    engine.dispose()
    with pytest.raises(RecordError, match="are at revision 0099"):
        open_centre(database)


def test_a_user_without_rights_is_told_of_them(postgres: str) -> None:
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        connection.execute(text("DROP ROLE IF EXISTS guest"))
        connection.execute(text("CREATE ROLE guest LOGIN"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO guest"))
    with pytest.raises(RecordError, match=r"refuses its tables: .*permission denied.*Check this user's rights"):
        open_centre(postgres.replace("popmi@", "guest@"))
    engine.dispose()


def test_a_centre_held_by_another_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "centre.sqlite"
    engine = open_centre(path)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, holder.rollback)
    release.start()
    with writing(engine) as session:
        assert not holder.in_transaction
        session.add(person())
    release.join()
    holder.close()
    engine.dispose()
