"""At which revision a server's databases are, and the ways up and down (server/control/tables.py)."""

from __future__ import annotations

import sqlite3

import pytest
from typer.testing import CliRunner

from popmi_core.errors import ConfigError, RunError, SetupError
from server.centre import centre_database, open_centre
from server.centre.history import CENTRE_HISTORY
from server.control.commands import app
from server.control.home import ServerHome
from server.control.tables import all_tables, bring_tables
from server.store import RunReader, RunWriter
from server.store.history import RECORD_HISTORY
from server.store.migrating import current
from server.store.schema import RECORD_NAME, connect


@pytest.fixture
def home(invited, believable, monkeypatch) -> ServerHome:
    """Return a home with two runs that ended."""
    monkeypatch.delenv("POPMI_DATABASE", raising=False)
    for name in ("first", "second"):
        invited.run_folder(name).mkdir(parents=True)
        believable.write_run(invited.run_folder(name) / RECORD_NAME, name=name, rounds=1)
    return invited


def said(home: ServerHome, *words: str, answer: str | None = None) -> str:
    done = CliRunner().invoke(app, ["database", *words, "--home", str(home.folder)], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def revisions(home: ServerHome) -> list[str]:
    return [tables.revision for tables in all_tables(home)]


def test_a_home_without_runs_has_no_database_yet(tmp_path, monkeypatch):
    monkeypatch.delenv("POPMI_DATABASE", raising=False)
    (tmp_path / "server.toml").write_text(
        'project = "P"\nendpoint = "a:443"\nclasses = ["mel", "nv"]\ndata_name = "d"\n'
    )
    assert "no database yet" in said(ServerHome(tmp_path))


def test_every_record_and_the_centre_are_listed(home):
    open_centre(centre_database(home.folder)).dispose()
    assert said(home).splitlines() == [
        "centre  centre.sqlite: revision 0001",
        "record  runs/first/record.sqlite: revision 0002",
        "record  runs/second/record.sqlite: revision 0002",
    ]


def test_looking_changes_nothing(home):
    path = home.run_folder("first") / RECORD_NAME
    before = path.read_bytes()
    said(home)
    assert path.read_bytes() == before
    assert sorted(item.name for item in path.parent.iterdir()) == [RECORD_NAME]


def test_all_records_go_down_and_up_after_a_yes(home):
    found = said(home, "--record", "0001", answer="y\n")
    assert "The way down deletes what only later revisions hold" in found
    assert "runs/second/record.sqlite: revision 0001, this release writes 0002" in found
    assert revisions(home) == ["0001", "0001"]
    said(home, "--record", "0002", "--yes")
    assert revisions(home) == ["0002", "0002"]


def test_a_no_leaves_all_as_it_is(home):
    said(home, "--record", "0001", answer="n\n")
    assert revisions(home) == ["0002", "0002"]


def test_the_centre_goes_its_own_way(home):
    open_centre(centre_database(home.folder)).dispose()
    assert "centre  centre.sqlite: no tables yet, this release writes 0001" in said(home, "--centre", "base", "--yes")
    assert revisions(home) == ["base", "0002", "0002"]


def test_one_database_for_all_is_looked_at_once(home, database, believable, monkeypatch):
    believable.write_run(database, rounds=1)
    monkeypatch.setenv("POPMI_DATABASE", database)
    assert [(tables.history.what, tables.revision) for tables in all_tables(home)] == [
        ("centre", "base"), ("record", "0002"),
    ]  # fmt: skip
    bring_tables(home, RECORD_HISTORY, "0001")
    bring_tables(home, CENTRE_HISTORY, "0001")
    assert revisions(home) == ["0001", "0001"]
    with RunReader(database) as reader:
        assert reader.run().status == "finished"


def test_the_way_down_waits_for_the_keeper_s_end(home):
    with home.alone("keeper"), pytest.raises(SetupError, match=r"another keeper is running here\. End it first"):
        bring_tables(home, RECORD_HISTORY, "0001")
    assert revisions(home) == ["0002", "0002"]


def test_the_way_down_is_refused_while_a_run_goes_on(home, believable):
    path = home.run_folder("second") / RECORD_NAME
    with RunWriter(path, heartbeat=0) as writer:
        believable.begin(writer, name="third")
        with pytest.raises(RunError, match=r"run third goes on, expected none. Stop it first: popmi server stop"):
            bring_tables(home, RECORD_HISTORY, "0001")
    assert revisions(home) == ["0002", "0002"]


def test_a_revision_nobody_knows_is_refused(home):
    with pytest.raises(ConfigError, match="record: revision '0003' is unknown, expected one of base, 0001, 0002"):
        bring_tables(home, RECORD_HISTORY, "0003")


def test_a_damaged_record_is_named(home):
    path = home.run_folder("first") / RECORD_NAME
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match=r"record .*first/record.sqlite cannot be read: file is not a database.*Check"):
        said(home)


def test_a_record_in_another_s_hands_is_named(home, monkeypatch):
    path = home.run_folder("first") / RECORD_NAME
    holder = sqlite3.connect(path, isolation_level=None)
    monkeypatch.setattr("server.store.schema.WRITER_PATIENCE", 0.1)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError, match=r"record .*cannot be changed: database is locked.*Check that"):
        bring_tables(home, RECORD_HISTORY, "0001")
    holder.close()
    engine = connect(path)
    assert current(engine, RECORD_HISTORY) == "0002"
    engine.dispose()
