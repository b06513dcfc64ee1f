"""Revisions of tables, up and down on filled databases of both kinds (server/store/migrating.py)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import Engine

from popmi_core.errors import ConfigError, RecordError
from server.centre.history import CENTRE_HISTORY
from server.centre.schema import CentreBase
from server.store import RunReader, RunWriter
from server.store.history import RECORD_HISTORY
from server.store.migrating import BASE, bring, current
from server.store.schema import Base, connect

HISTORIES = {"record": (RECORD_HISTORY, Base.metadata), "centre": (CENTRE_HISTORY, CentreBase.metadata)}


def form(engine: Engine) -> dict[str, Any]:
    """Return every table as the database has it, but for the tables of revisions."""
    inspector = inspect(engine)
    return {
        table: {
            "columns": {
                each["name"]: (str(each["type"]), each["nullable"], each.get("primary_key", 0))
                for each in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "parents": [
                (each["constrained_columns"], each["referred_table"], each["options"])
                for each in inspector.get_foreign_keys(table)
            ],
            "indexes": sorted(
                (str(each["name"]), each["column_names"], bool(each["unique"])) for each in inspector.get_indexes(table)
            ),
            "unique": sorted(each["column_names"] for each in inspector.get_unique_constraints(table)),
        }
        for table in inspector.get_table_names()
        if not table.endswith("_version")
    }


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table, in a set order."""
    with engine.connect() as connection:
        return {
            table: sorted((tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))), key=repr)
            for table in inspect(engine).get_table_names()
            if not table.endswith("_version")
        }


def fill(database: str, believable: ModuleType) -> None:
    with RunWriter(database, heartbeat=0) as writer:
        believable.begin(writer)
        believable.add_round(writer, 1)
        writer.record_match(1, "msk", gains={"deep": 0.5}, angles={"deep": 33.0}, moved={"deep": 7}, units={"deep": 16})
        writer.record_details(1, [("global", "val", "lee", {"num_images": 40})])
        writer.event("a line")
        writer.finish_run("finished")


@pytest.mark.parametrize("name", HISTORIES)
def test_revisions_make_the_tables_that_the_code_knows(database: str, name: str) -> None:
    history, known = HISTORIES[name]
    engine = connect(database)
    known.create_all(engine)
    expected = form(engine)
    known.drop_all(engine)
    assert bring(engine, history) == (BASE, history.head)
    assert form(engine) == expected
    engine.dispose()


@pytest.mark.parametrize("name", HISTORIES)
def test_the_revisions_that_are_named_are_those_in_the_folder(name: str) -> None:
    history, _ = HISTORIES[name]
    config = Config()
    config.set_main_option("script_location", str(history.folder))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == history.revisions


@pytest.mark.parametrize("name", HISTORIES)
def test_the_revisions_are_packages_so_that_a_wheel_holds_them(name: str) -> None:
    folder = HISTORIES[name][0].folder
    assert all((place / "__init__.py").is_file() for place in (folder, folder / "versions"))
    assert (folder / "env.py").is_file()


def test_a_filled_record_goes_down_and_up_and_keeps_its_rows(database: str, believable: ModuleType) -> None:
    fill(database, believable)
    engine = connect(database)
    newest, before = form(engine), rows(engine)

    assert bring(engine, RECORD_HISTORY, "0001") == ("0002", "0001")
    after = rows(engine)
    assert "details" not in after
    matched = before["match_layers"]
    assert len(matched) > 20
    assert after["match_layers"] == [row[:-3] for row in matched]
    assert {name: found for name, found in after.items() if name != "match_layers"} == {
        name: found for name, found in before.items() if name not in ("match_layers", "details")
    }

    assert bring(engine, RECORD_HISTORY) == ("0001", "0002")
    assert form(engine) == newest
    again = rows(engine)
    assert again["details"] == []
    assert again["match_layers"] == [(*row[:-3], None, None, None) for row in matched]
    engine.dispose()


def test_a_record_of_before_the_revisions_is_taken_up_with_its_rows(database: str, believable: ModuleType) -> None:
    fill(database, believable)
    engine = connect(database)
    bring(engine, RECORD_HISTORY, BASE)
    assert current(engine, RECORD_HISTORY) == BASE
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE record_version"))
        connection.execute(text("DROP TABLE candidates"))
    before = rows(engine)
    assert bring(engine, RECORD_HISTORY) == (BASE, "0002")
    after = rows(engine)
    assert after["candidates"] == after["details"] == []
    assert {name: found for name, found in after.items() if name in before and name != "match_layers"} == {
        name: found for name, found in before.items() if name != "match_layers"
    }
    engine.dispose()


def test_a_filled_centre_goes_down_to_nothing_and_leaves_the_record(database: str, believable: ModuleType) -> None:
    fill(database, believable)
    engine = connect(database)
    before = rows(engine)
    bring(engine, CENTRE_HISTORY)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO board (key, value, time) VALUES ('status', '{}', 1.0)"))
    assert bring(engine, CENTRE_HISTORY, BASE) == ("0001", BASE)
    assert rows(engine) == before
    assert current(engine, RECORD_HISTORY) == "0002"
    engine.dispose()


def test_an_older_record_is_read_without_being_changed(database: str, believable: ModuleType) -> None:
    fill(database, believable)
    engine = connect(database)
    bring(engine, RECORD_HISTORY, "0001")
    before = form(engine)
    with RunReader(database) as reader:
        run = reader.run()
        assert reader.details(run.id) == ()
        found = reader.matches(run.id)
        assert len(found) > 20
        assert {(row.angle, row.moved, row.units) for row in found} == {(None, None, None)}
    assert form(engine) == before
    engine.dispose()


def test_a_record_that_is_brought_up_beside_a_reader_is_seen_by_it(database: str, believable: ModuleType) -> None:
    fill(database, believable)
    engine = connect(database)
    bring(engine, RECORD_HISTORY, "0001")
    with RunReader(database) as reader:
        assert reader.details(reader.run().id) == ()
        with RunWriter(database, heartbeat=0) as writer:
            writer.take_over(reader.run().id)
            writer.record_details(1, [("global", "val", "lee", {"num_images": 40})])
        assert [row.value for row in reader.details(reader.run().id)] == [{"num_images": 40}]
    engine.dispose()


@pytest.mark.parametrize("name", HISTORIES)
def test_a_database_of_a_newer_release_is_refused_and_not_touched(database: str, name: str) -> None:
    history, _ = HISTORIES[name]
    engine = connect(database)
    bring(engine, history)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {history.version_table} SET version_num = '0099'"))
    before = form(engine)
    with pytest.raises(
        RecordError, match=rf"{name} .+ are at revision 0099, this release knows up to {history.head}. Nothing was"
    ) as caught:
        bring(engine, history)
    assert Path(database).name in str(caught.value)
    assert form(engine) == before
    assert current(engine, history) == "0099"
    engine.dispose()


def test_a_writer_refuses_a_record_of_a_newer_release(database: str) -> None:
    RunWriter(database, heartbeat=0).close()
    engine = connect(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE record_version SET version_num = '0099'"))
    engine.dispose()
    with pytest.raises(RecordError, match="are at revision 0099"):
        RunWriter(database, heartbeat=0)


def test_a_password_is_in_no_refusal(postgres: str) -> None:
    engine = create_engine(postgres.replace("popmi@", "popmi:secret@"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        connection.execute(text("CREATE TABLE record_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO record_version VALUES ('0099')"))
    with pytest.raises(RecordError, match="are at revision 0099") as caught:
        bring(engine, RECORD_HISTORY)
    assert "secret" not in str(caught.value)
    engine.dispose()


def test_an_unknown_revision_is_refused(tmp_path: Path) -> None:
    engine = connect(tmp_path / "record.sqlite")
    with pytest.raises(ConfigError, match="record: revision '7' is unknown, expected one of base, 0001, 0002"):
        bring(engine, RECORD_HISTORY, "7")
    engine.dispose()


def test_two_that_begin_at_once_make_the_tables_once(database: str) -> None:
    found: list[Any] = []
    together = threading.Barrier(4)

    def begin() -> None:
        engine = connect(database)
        together.wait()
        try:
            found.append(bring(engine, RECORD_HISTORY))
        except Exception as error:
            found.append(error)
        engine.dispose()

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [item for item in found if isinstance(item, Exception)] == []
    engine = connect(database)
    assert current(engine, RECORD_HISTORY) == "0002"
    engine.dispose()


HALFWAY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from alembic import op
from server.store.history import RECORD_HISTORY
from server.store.migrating import bring
from server.store.schema import connect
def killed(*_, **__):
    os.kill(os.getpid(), 9)
op.{what} = killed
bring(connect(sys.argv[1]), RECORD_HISTORY, {to!r})
"""


@pytest.mark.parametrize(("what", "to"), [("add_column", "0002"), ("drop_table", "0001")])
def test_a_kill_in_the_middle_leaves_the_old_state(database: str, believable: ModuleType, what: str, to: str) -> None:
    fill(database, believable)
    engine = connect(database)
    if to == "0002":
        bring(engine, RECORD_HISTORY, "0001")
    before, held = current(engine, RECORD_HISTORY), (form(engine), rows(engine))
    engine.dispose()
    tree = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", HALFWAY.format(what=what, to=to), database, str(tree)], timeout=60)
    assert done.returncode == -9
    engine = connect(database)
    assert current(engine, RECORD_HISTORY) == before
    assert (form(engine), rows(engine)) == held
    assert bring(engine, RECORD_HISTORY, to) == (before, to)
    engine.dispose()


def test_a_new_record_is_made_in_a_moment_and_an_old_one_opened_without_alembic(tmp_path: Path) -> None:
    database, tree = tmp_path / "record.sqlite", Path(__file__).parents[4]
    script = (
        f"import sys, time; sys.path.insert(0, {str(tree)!r})\n"
        "from server.store import RunWriter\n"
        "begun = time.perf_counter()\n"
        f"RunWriter({str(database)!r}, heartbeat=0).close()\n"
        "print(time.perf_counter() - begun, 'alembic' in sys.modules)"
    )

    def opened() -> Mapping[str, Any]:
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        seconds, imported = said.stdout.split()
        return {"seconds": float(seconds), "imported": imported == "True"}

    first = opened()
    assert first["imported"]
    # 0.1 s on a machine with nothing else to do; the bound is for one that has.
    assert first["seconds"] < 3
    assert not opened()["imported"]


def test_waiting_for_the_table_ends(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.migrating.LOCK_SECONDS", 1)
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    begun = time.monotonic()
    with engine.begin() as holder:
        holder.execute(text(f"SELECT pg_advisory_xact_lock({RECORD_HISTORY.lock})"))
        with pytest.raises(Exception, match="lock timeout"):
            bring(engine, RECORD_HISTORY)
    assert time.monotonic() - begun < 20
    engine.dispose()
