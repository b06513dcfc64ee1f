"""A supervisor that is killed leaves nobody behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SUPERVISOR = """
import sys
from pathlib import Path
from popmi_core.deployment import Process, Supervisor
Supervisor([Process("one", [sys.executable, "-c", "import time; time.sleep(600)"])], Path(sys.argv[1])).run()
"""


def lives(process: int) -> bool:
    try:
        # A dead process that nobody has asked about yet still has a number.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(what):
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("never")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_what_a_killed_supervisor_started_ends_with_it(tmp_path):
    told = tmp_path / "processes.json"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], env=env)
    child = wait_for(lambda: told.exists() and json.loads(told.read_text())["one"]["process"])
    assert lives(child)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    wait_for(lambda: not lives(child))
