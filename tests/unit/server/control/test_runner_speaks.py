"""What the server app says stands in the runner's log (server/control/runner.py)."""

from __future__ import annotations

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import LaunchResult
from flwr.supercore.superexec.plugin import base_exec_plugin
from flwr.supercore.superexec.plugin.base_exec_plugin import AutoExecPlugin

from popmi_core.errors import SetupError
from server.control import runner


class Noted:
    """An executor that starts nothing and remembers what it was to start."""

    def __init__(self):
        self.spec = None

    def launch(self, spec):
        self.spec = spec
        return LaunchResult.accepted()


class ServerAppTask:
    task_id, fab_hash, type = 1, "f", TaskType.SERVER_APP


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    monkeypatch.setattr(AutoExecPlugin, "suppress_output", AutoExecPlugin.suppress_output)


def hidden() -> bool:
    executor = Noted()
    plugin = AutoExecPlugin("127.0.0.1:1", True, None, executor=executor)
    plugin.launch_task("token", ServerAppTask())
    return executor.spec.suppress_output


def test_what_the_server_app_says_can_be_heard(monkeypatch):
    heard = []
    monkeypatch.setattr(runner, "flower_superexec", lambda: heard.append(not hidden()))
    runner.main()
    assert heard == [True]


def test_flower_alone_hides_it_so_this_is_still_needed():
    assert hidden()


def test_another_flower_is_refused(monkeypatch):
    monkeypatch.setattr(base_exec_plugin, "AutoExecPlugin", object)
    with pytest.raises(SetupError, match=r"has no suppress_output, expected flwr 1\.41"):
        runner.let_it_speak()
