"""Taking part: what must be there first, one process a site, pause, resume, status."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time

import pytest
from site_parts import make_home
from typer.testing import CliRunner

from client.site import run as running
from client.site.commands import app
from client.site.home import SiteHome
from client.site.run import check_ready, notices, pause, processes, resume, running_process, status, take_part
from popmi_core.cli.main import app as popmi
from popmi_core.deployment import Process
from popmi_core.errors import SetupError

HOLD = (
    "import sys; from pathlib import Path; from client.site import run; from client.site.home import SiteHome;"
    "from popmi_core.deployment import Process;"
    "run.processes = lambda *_: [Process('node', ['sleep', '600']), Process('gate', ['sleep', '600'], after='node')];"
    "run.take_part(SiteHome(Path(sys.argv[1])))"
)


@pytest.fixture
def home(tmp_path) -> SiteHome:
    return make_home(tmp_path / "site")


@pytest.fixture
def held(home):
    """The site takes part in another process, with programs that only sleep."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home.folder)])
    until = time.monotonic() + 60
    while not (home.processes / "processes.json").exists() or not status(home)["processes"].get("gate", {}).get(
        "process"
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    yield process
    process.terminate()
    process.wait(30)


def ran(home, *words, **more):
    return CliRunner().invoke(app, [*words, "--home", str(home.folder)], **more)


def events(home) -> list[str]:
    return [entry.event for entry in home.audit.entries()]


def test_the_node_gets_key_authority_and_endpoint_and_the_gate_its_address(home):
    node, gate = processes(home, home.config(), 4711)
    told = " ".join(node.command)
    assert f"--superlink localhost:1 --root-certificates {home.ca}" in told
    assert f"--auth-supernode-private-key {home.key}" in told
    assert "--isolation process --host 127.0.0.1 --port 4711" in told
    assert "--insecure" not in told
    assert list(gate.command)[-1] == "127.0.0.1:4711"
    assert gate.after == "node"
    assert {"FLWR_TELEMETRY_ENABLED", "NO_PROXY"} <= node.env.keys()
    assert "phantom" not in told


def test_a_proxy_of_the_description_reaches_the_node(home):
    config = home.config().model_copy(update={"proxy": "http://proxy:3128"})
    assert processes(home, config, 1)[0].env["HTTPS_PROXY"] == "http://proxy:3128"


@pytest.mark.parametrize("missing", ["key", "ca", "secret"])
def test_what_is_missing_is_named_before_anything_starts(home, missing):
    getattr(home, missing).unlink()
    with pytest.raises(SetupError, match=r"is missing\. Run `popmi site enrol"):
        take_part(home)


def test_a_key_others_can_read_is_not_used(home):
    home.key.chmod(0o644)
    with pytest.raises(SetupError, match=r"can be read by others.*chmod 600"):
        check_ready(home)


def test_a_site_takes_part_once(home, held):
    assert running_process(home) == held.pid
    with pytest.raises(SetupError, match=f"takes part already .process {held.pid}"):
        take_part(home)


def test_status_says_what_goes_on_and_whether_it_is_well(home, held):
    (home.processes / "alive").touch()
    # Two processes that live are not enough: a site whose server does not answer takes no part.
    assert not status(home)["well"]
    assert "the server does not answer the node" in ran(home, "status").output
    (home.processes / "heard").touch()
    told = status(home)
    assert told["well"]
    assert told["server_heard_seconds_ago"] < 60
    assert told["process"] == held.pid
    assert ran(home, "status").exit_code == 0
    os.utime(home.processes / "alive", (0, 0))
    done = ran(home, "status")
    assert done.exit_code == 1
    assert "does NOT take part" in done.output
    pause(home, "holiday")
    told = json.loads(ran(home, "status", "--json").output)
    assert told["paused"] == "holiday"
    assert told["approved"] == []
    assert "paused: holiday" in ran(home, "status").output


def test_a_site_nobody_runs_is_not_well(home):
    told = status(home)
    assert not told["well"]
    assert told["process"] is None
    assert "no process runs" in ran(home, "status").output


def test_an_ended_process_starts_again_whatever_its_code(home, monkeypatch):
    counted = home.folder / "starts"
    command = ["sh", "-c", f"printf x >> '{counted}'"]
    monkeypatch.setattr(running, "processes", lambda *_: [Process("node", command)])
    take_part(home, seconds=4.0)
    assert len(counted.read_text()) >= 2
    assert events(home)[-2:] == ["site.started", "site.stopped"]
    assert running_process(home) is None


def test_a_pause_outlives_a_restart_and_ends_on_request_only(home):
    assert ran(home, "pause", "--reason", "scanner service").exit_code == 0
    assert home.pause_reason() == "scanner service"
    assert any("the site has paused (scanner service)" in line for line in notices(home))
    assert "takes part again" in ran(home, "resume").output
    assert home.pause_reason() is None
    assert "had not paused" in ran(home, "resume").output
    assert not resume(home)
    pause(home, " ")
    assert home.pause_reason() == "no reason given"
    assert events(home)[-3:] == ["site.paused", "site.resumed", "site.paused"]


def refused(home, *words) -> str:
    """Return why a command was refused; anything but an error that says so is a traceback to its user."""
    done = ran(home, *words)
    assert done.exit_code == 1
    assert isinstance(done.exception, SetupError)
    return str(done.exception)


def test_a_pause_that_cannot_be_read_is_told_and_what_is_told_helps(home):
    home.paused.write_bytes(b"caf\xe9")
    assert any("paused cannot be read (no UTF-8 text)" in line for line in notices(home))
    told = refused(home, "resume")
    assert told.endswith("Run `popmi site pause`, then `popmi site resume`: they write it anew.")
    assert ran(home, "pause").exit_code == 0
    assert "takes part again" in ran(home, "resume").output


def test_a_folder_in_place_of_a_pause_is_told_and_pausing_goes_once_it_is_removed(home):
    home.paused.mkdir()
    assert refused(home, "resume").endswith("Remove it: a folder of that name is no pause.")
    told = refused(home, "pause", "--reason", "service")
    assert told.startswith(f"the site has not paused: {home.paused} cannot be written (Is a directory). Remove it: ")
    assert list(home.folder.glob(".paused*")) == []
    assert "site.paused" not in events(home)
    home.paused.rmdir()
    assert "had not paused" in ran(home, "resume").output
    assert ran(home, "pause", "--reason", "service").exit_code == 0
    assert home.pause_reason() == "service"


def test_a_pause_of_another_user_is_read_by_its_owner(home, monkeypatch):
    pause(home, "service")
    read = type(home.paused).read_text

    def denied(path, **more):
        if path == home.paused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, **more)

    with monkeypatch.context() as stranger:
        stranger.setattr(type(home.paused), "read_text", denied)
        told = refused(home, "resume")
    assert told.startswith(f"{home.paused} cannot be read (Permission denied), ")
    assert told.endswith("Run as its owner.")
    assert "takes part again" in ran(home, "resume").output


def test_a_pause_that_cannot_be_written_or_removed_says_why(home, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fixed(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(running, "replace_atomically", full)
        told = refused(home, "pause")
    assert f"{home.paused} cannot be written (No space left on device). Check its folder's owner and room." in told
    assert home.pause_reason() is None
    pause(home, "service")
    with monkeypatch.context() as patch:
        patch.setattr(type(home.paused), "unlink", fixed)
        told = refused(home, "resume")
    assert (
        f"the pause goes on: {home.paused} cannot be removed (Read-only file system). Run `popmi site resume`" in told
    )
    assert events(home)[-1] == "site.paused"
    assert "takes part again" in ran(home, "resume").output


def test_status_tells_a_pause_that_cannot_be_read_and_all_the_rest(home, held):
    (home.processes / "alive").touch()
    (home.processes / "heard").touch()
    assert status(home)["well"]
    home.paused.write_bytes(b"caf\xe9")
    done = ran(home, "status", "--json")
    told = json.loads(done.output)
    assert done.exit_code == 1
    assert f"{home.paused} cannot be read (no UTF-8 text)" in told["paused"]
    assert (told["well"], told["process"], told["approved"]) == (False, held.pid, [])
    shown = ran(home, "status")
    assert shown.exit_code == 1
    assert "does NOT take part" in shown.output
    assert f"paused: {told['paused']}" in shown.output
    assert "gate: process" in shown.output


def test_without_approved_code_the_site_says_that_it_waits(home):
    assert any("no code is approved yet" in line for line in notices(home))


def test_damaged_approvals_are_told_and_the_site_runs_all_the_same(home, monkeypatch, caplog):
    home.approved.write_text("{")
    monkeypatch.setattr(running, "processes", lambda *_: [Process("node", ["sleep", "600"])])
    take_part(home, seconds=0.5)
    assert "approved.json cannot be read: nothing is approved" in caplog.text
    assert "no code is approved yet" not in caplog.text
    assert events(home)[-2:] == ["site.started", "site.stopped"]


@pytest.mark.parametrize(("left", "code"), [(True, 10), (False, 8)])
def test_only_a_site_that_has_left_ends_with_the_code_that_keeps_a_service_from_starting_it_again(
    home, monkeypatch, capsys, left, code
):
    # A folder that is not mounted yet is empty.
    home.left.touch() if left else home.config_file.unlink()
    monkeypatch.setattr(sys, "argv", ["popmi", "site", "run", "--home", str(home.folder)])
    with pytest.raises(SystemExit) as ended:
        popmi()
    assert ended.value.code == code
    assert ("has left the project" if left else "is no site") in capsys.readouterr().err


def test_a_supervisor_that_is_gone_leaves_nothing_running():
    code = (
        "import os, subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'from client.site.leash import die_with_supervisor;"
        "die_with_supervisor(); print(1, flush=True); import time; time.sleep(600)'],"
        "env={**os.environ, 'POPMI_PARENT': str(os.getpid())}, stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); import time; time.sleep(600)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}") and time.monotonic() < until:  # noqa: PTH110
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")  # noqa: PTH110


def test_a_process_whose_supervisor_is_gone_already_ends_at_once():
    code = "from client.site.leash import die_with; die_with(1 if __import__('os').getppid() != 1 else 2)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_a_reason_in_another_encoding_pauses_all_the_same(home):
    pause(home, "caf\udce9")
    assert home.pause_reason() == "caf?"
    assert list(home.audit.entries())[-1].details == {"reason": "caf?"}


def test_an_emptied_log_of_an_enrolled_site_is_told(home):
    home.audit.path.write_text("")
    done = ran(home, "audit", "verify")
    assert "is empty, expected this site's enrolment" in str(done.exception)
    home.audit.path.write_text('{"torn')
    home.key.unlink()
    assert "6 bytes of a line that was not finished follow" in ran(home, "audit", "verify").output


def test_two_who_ask_at_once_do_not_take_each_other_for_the_process(home):
    home.processes.mkdir()
    (home.processes / "running.lock").write_text("4194304")
    with (home.processes / "running.lock").open("r+") as other:
        running.fcntl.flock(other, running.fcntl.LOCK_SH)
        assert running_process(home) is None
