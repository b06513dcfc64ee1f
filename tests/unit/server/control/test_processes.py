"""Which processes a server has, and with what arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popmi_core.deployment import Process
from popmi_core.errors import SetupError
from server.control import running
from server.control.home import ServerSettings
from server.control.superlink import Places, environment, processes, programs, split_address


def after(command, option):
    return command[list(command).index(option) + 1]


@pytest.fixture
def made(home):
    def make(**places):
        return processes(home, home.settings(), Places(**places))

    return make


def test_all_five_start_in_order(made):
    assert list(made()) == ["superlink", "runner", "gateway", "keeper", "dashboard"]
    assert all(Path(process.command[0]).exists() for process in made().values())


def test_the_superlink_is_locked(made, home):
    command = made()["superlink"].command
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "18000")
    assert after(command, "--isolation") == "process"
    assert after(command, "--superexec-auth-secret-file") == str(home.secret)
    assert after(command, "--database") == str(home.state)
    assert after(command, "--ssl-certfile") == str(home.certificate)
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(command)
    assert "--insecure" not in command


def test_only_the_gateway_is_public(made):
    all_of_them = made()
    assert after(all_of_them["gateway"].command, "--host") == "0.0.0.0"
    assert after(all_of_them["gateway"].command, "--port") == "8443"
    others = [process for name, process in all_of_them.items() if name != "gateway"]
    assert not any("0.0.0.0" in process.command for process in others)
    assert after(all_of_them["dashboard"].command, "--host") == "127.0.0.1"


def test_a_container_may_bind_the_superlink_to_its_own_network(made):
    command = made(superlink="0.0.0.0", host="::", port=9, dashboard_port=10, confirm_from=Path("/x"))
    assert after(command["superlink"].command, "--host") == "0.0.0.0"
    assert (after(command["gateway"].command, "--host"), after(command["gateway"].command, "--port")) == ("::", "9")
    assert after(command["dashboard"].command, "--port") == "10"
    assert after(command["keeper"].command, "--confirm-from") == "/x"


def test_the_runner_shares_the_secret_and_checks_the_certificate(made, home):
    command = made()["runner"].command
    assert after(command, "--runtime-api-address") == "127.0.0.1:18000"
    assert after(command, "--root-certificates") == str(home.ca)
    assert after(command, "--superexec-auth-secret-file") == str(home.secret)


def test_flower_neither_calls_home_nor_installs_and_finds_its_programs(home, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    env = environment(home)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["POPMI_SERVER_HOME"] == str(home.folder)
    assert env["PATH"] == f"{programs()}{os.pathsep}/usr/bin"
    assert (programs() / "flwr-serverapp").exists()
    monkeypatch.setenv("PATH", env["PATH"])
    assert environment(home)["PATH"] == env["PATH"]


def test_no_password_is_on_a_command_line(made, monkeypatch):
    monkeypatch.setenv("POPMI_DATABASE", "postgresql+psycopg://popmi:secret@db/popmi")
    assert not any("secret@" in word for process in made().values() for word in process.command)


def test_addresses_are_taken_apart():
    assert split_address("a.example:443") == ("a.example", 443)
    assert split_address("[2001:db8::1]:443") == ("2001:db8::1", 443)


def test_a_part_takes_this_processs_place(home, monkeypatch):
    taken = []
    monkeypatch.setattr(os, "execvpe", lambda file, args, env: taken.append((file, args, env)))
    running.run_part(home, "superlink", Places(superlink="0.0.0.0"))
    ((file, args, env),) = taken
    assert file == sys.executable
    assert args[:3] == [sys.executable, "-m", "server.control.patient"]
    assert after(args, "--host") == "0.0.0.0"
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_a_program_that_is_not_installed_is_told(home, monkeypatch):
    monkeypatch.setattr("server.control.superlink.sys.executable", str(home.folder / "python"))
    with pytest.raises(SetupError, match=r"cannot start .*python: No such file.*Install popmi\[server\]"):
        running.run_part(home, "runner", Places())


def test_a_second_server_at_one_home_is_refused(home):
    with home.alone("server"), pytest.raises(SetupError, match="another server is running here"):
        running.run_all(home, Places())


def test_all_are_kept_going_and_the_log_tells_when(home, monkeypatch, audited):
    done = []
    one = Process("one", [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(running, "processes", lambda *_: {"one": one})

    class Short(running.Supervisor):
        def run(self, *, seconds=None):
            super().run(seconds=0.5)
            done.append(json.loads((self.folder / "processes.json").read_text()))

    monkeypatch.setattr(running, "Supervisor", Short)
    running.run_all(home, Places())
    assert done[0]["one"]["starts"] == 1
    assert audited()[-2:] == ["server.up", "server.down"]


def test_the_keeper_ends_when_asked(home, audited):
    command = [str(programs() / "popmi"), "server", "up", "--only", "keeper", "--home", str(home.folder)]
    root = str(Path(__file__).parents[4])
    keeper = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE)
    until = time.monotonic() + 200
    while "superlink.away" not in audited() and time.monotonic() < until:
        time.sleep(0.2)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(60) == 0, keeper.stderr.read()
    assert [event for event in audited() if not event.startswith(("server.", "certificate."))] == [
        "keeper.started",
        "superlink.away",
        "keeper.ended",
    ]


def test_a_gateway_without_its_port_is_told(home, monkeypatch):
    settings = ServerSettings(**home.settings().model_dump() | {"endpoint": "a.example:1"})
    home.certificate.unlink()
    with pytest.raises(SetupError, match=r"cannot listen on 127.0.0.1 port 1"):
        running.run_gateway(home, settings, Places(host="127.0.0.1"))
