"""Logs of supervised processes stay small: one old file is kept, and the writer goes on where it was."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from popmi_core.deployment import Process, Supervisor, logs, supervise
from popmi_core.deployment.logs import put_aside

TALKS = """
import pathlib, sys, time
print("before" * 500, flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
print("after", flush=True)
time.sleep(600)
"""


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 200
    while not what():
        assert time.monotonic() < until, "never"
        time.sleep(0.05)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_short_log_and_a_missing_one_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    assert not put_aside(path, limit=10)
    path.write_bytes(b"123456789")
    assert not put_aside(path, limit=10)
    assert [item.name for item in tmp_path.iterdir()] == ["node.log"]


def test_a_long_log_becomes_the_old_one_with_its_mode_and_the_older_one_goes(tmp_path: Path) -> None:
    path, old = tmp_path / "node.log", tmp_path / "node.log.1"
    old.write_bytes(b"of yesterday, and longer than that of today")
    old.chmod(0o644)
    path.write_bytes(b"of today")
    path.chmod(0o600)
    assert put_aside(path, limit=8)
    assert (path.read_bytes(), old.read_bytes()) == (b"", b"of today")
    assert old.stat().st_mode & 0o777 == 0o600


def test_a_writer_that_appends_goes_on_at_the_new_end(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        assert put_aside(path, limit=100)
        writer.write(b"b")
    # No hole of zeros where the first hundred bytes were.
    assert path.read_bytes() == b"b"


def test_where_no_copy_can_be_written_the_log_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.log"
    path.write_bytes(b"a" * 100)
    monkeypatch.setattr(logs.shutil, "copy", full_disk)
    with pytest.raises(OSError, match="No space left"):
        put_aside(path, limit=100)
    assert path.read_bytes() == b"a" * 100


def test_a_supervised_process_goes_on_while_its_log_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_AT_LOGS", 0.0)
    go, path, old = tmp_path / "go", tmp_path / "one.log", tmp_path / "one.log.1"
    supervisor = Supervisor([Process("one", [sys.executable, "-c", TALKS, str(go)])], tmp_path, log_bytes=3000)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_for(lambda: old.exists() and old.stat().st_size >= 3000 and path.stat().st_size == 0)
        go.touch()
        wait_for(lambda: path.read_bytes() == b"after\n")
    finally:
        supervisor.stop()
        thread.join()
    assert old.read_bytes() == b"before" * 500 + b"\n"
    assert (tmp_path / "processes.json").exists()


def test_a_log_is_its_users_only_also_one_that_an_older_release_made(tmp_path: Path) -> None:
    """The pages print the link there that makes the first admin."""
    path = tmp_path / "one.log"
    path.write_text("before\n")
    path.chmod(0o644)
    supervisor = Supervisor([Process(name, ["sleep", "600"]) for name in ("one", "two")], tmp_path)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_for(lambda: (tmp_path / "two.log").exists())
    finally:
        supervisor.stop()
        thread.join()
    assert {item.stat().st_mode & 0o777 for item in (path, tmp_path / "two.log")} == {0o600}
    assert path.read_text() == "before\n"


def test_a_full_disk_ends_nothing_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    def fail(path: Path, *, limit: int) -> bool:
        looks.append(path)
        if len(looks) == 3:
            supervisor.stop()
        full_disk()
        return True

    monkeypatch.setattr(supervise, "LOOK_AT_LOGS", 0.0)
    monkeypatch.setattr(supervise, "put_aside", fail)
    supervisor = Supervisor([Process("one", ["sleep", "600"])], tmp_path)
    with caplog.at_level(logging.WARNING, logger="popmi.supervise"):
        supervisor.run()
    assert len(looks) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "one.log cannot be put aside: No space left on device. It grows on; make room."
    ]
