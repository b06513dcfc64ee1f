"""Leaving for good: in the order that survives its own end, and whole at the second call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from site_parts import make_home, make_kit
from typer.testing import CliRunner

from client.site import run as running
from client.site.commands import app
from client.site.enrol import enrol
from client.site.home import SiteHome
from client.site.run import check_ready, end_running, leave, running_process, status, take_part
from popmi_core.errors import AuditError, LeftError, SetupError

HOLD = (
    "import sys; from pathlib import Path; from client.site import run; from client.site.home import SiteHome;"
    "from popmi_core.deployment import Process;"
    "run.processes = lambda *_: [Process('node', ['sleep', '600'])];"
    "run.take_part(SiteHome(Path(sys.argv[1])))"
)


class Killed(BaseException):
    """What the kernel does to a command in a container whose main process ends."""


@pytest.fixture
def home(tmp_path) -> SiteHome:
    return make_home(tmp_path / "site")


@pytest.fixture
def held(home):
    """The site takes part in another process, with a program that only sleeps."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home.folder)])
    until = time.monotonic() + 60
    while not status(home)["processes"].get("node", {}).get("process"):
        assert time.monotonic() < until
        time.sleep(0.05)
    yield process
    process.terminate()
    process.wait(30)


def ran(home, *words, **more):
    return CliRunner().invoke(app, [*words, "--home", str(home.folder)], **more)


def left(home) -> list[dict]:
    return [entry.details for entry in home.audit.entries() if entry.event == "site.left"]


def test_leaving_ends_the_process_keeps_the_key_and_says_what_the_operator_does(home, held):
    assert ran(home, "leave", input="n\n").exit_code == 1
    assert running_process(home) == held.pid
    done = ran(home, "leave", "--yes")
    assert done.exit_code == 0, done.output
    assert "The running process was ended." in done.output
    assert "popmi server revoke north" in done.output
    assert held.wait(30) == 0
    assert home.key.exists()
    with pytest.raises(LeftError, match="has left the project"):
        take_part(home)
    assert "has left the project" in ran(home, "status").output


def test_a_leave_that_ends_with_the_process_it_ends_has_done_and_said_all_before(home, held, monkeypatch, capsys):
    seen = []

    def killed(process, number):
        seen.append((process, number, home.key.exists(), left(home)))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running.os, "kill", killed)
        with pytest.raises(Killed):
            app(["leave", "--forget", "--yes", "--home", str(home.folder)], standalone_mode=False)
    assert seen == [(held.pid, signal.SIGTERM, False, [{"site": "north", "key_removed": True}])]
    assert "popmi server revoke north" in capsys.readouterr().out


@pytest.mark.parametrize("forget", [True, False])
def test_a_leave_that_was_cut_short_is_finished_by_another(home, held, forget):
    home.left.write_text("2026-01-01T00:00:00Z")
    done = ran(home, "leave", "--yes", *(["--forget"] if forget else []))
    assert done.exit_code == 0, done.output
    assert home.key.exists() is not forget
    assert home.left.read_text() == "2026-01-01T00:00:00Z"
    assert left(home) == [{"site": "north", "key_removed": forget}]
    assert held.wait(30) == 0


def test_leaving_can_forget_the_key_and_enrolling_again_makes_another(home):
    before = home.key.read_bytes()
    leave(home, forget=True)
    assert not home.key.exists()
    assert not end_running(home)
    enrol(home, make_kit(), data="phantom:a")
    check_ready(home)
    assert home.key.read_bytes() != before


def test_a_full_disk_is_told_and_the_next_leave_is_whole(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(running, "replace_atomically", full)
        with pytest.raises(SetupError, match=r"leaving is not finished.*No space left on device.*leave` again"):
            leave(home, forget=True)
    assert home.key.exists()
    log = home.audit.path.read_bytes()
    home.audit.path.unlink()
    home.audit.path.mkdir()
    with pytest.raises(AuditError, match="cannot write audit log"):
        leave(home, forget=True)
    home.audit.path.rmdir()
    home.audit.path.write_bytes(log)
    leave(home, forget=True)
    assert left(home) == [{"site": "north", "key_removed": True}]


def test_a_process_that_does_not_end_is_told(home, monkeypatch):
    monkeypatch.setattr(running, "running_process", lambda _: 4194304)
    monkeypatch.setattr(running.os, "kill", lambda *_: None)
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    with pytest.raises(SetupError, match="process 4194304 does not end"):
        end_running(home)


@pytest.mark.parametrize("own", [True, False])
def test_a_process_of_another_container_is_not_mistaken_for_one_of_here(home, monkeypatch, own):
    # This very command's number, which it must not end; or one above the highest that Linux gives.
    process = os.getpid() if own else 4194304
    monkeypatch.setattr(running, "running_process", lambda _: process)
    with pytest.raises(SetupError, match=rf"process {process} cannot be ended from here.*docker compose down"):
        end_running(home)
