"""What the gate survives beside its tasks: an idle worker killed, a log it cannot write, a leave cut short."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.cli.build import build_fab_from_files
from held import Watched, no_search_for_garbage
from site_parts import make_home, small_bundle

from client.site.approval import Approvals
from client.site.contact import UNHEARD, Contact
from client.site.findings import failed
from client.site.gate import Gate, end_stuck_node
from client.site.nodelink import Input, half_sent
from popmi_core.protocol import INSTRUCTION, JSON_KEY, REPORT, Report

SLOW = (b"    return", b"    time.sleep(600)\n    return")


class Enough(Exception):
    """Ends a gate's loop once a test has seen what it wanted."""


class Asked:
    """A task as the node would hand it out; keeps what it was answered."""

    def __init__(self, given: Input) -> None:
        self.given, self.wanted = given, True
        self.answered: list[tuple[Message, Context]] = []

    def take(self) -> Input:
        return self.given

    def alive(self) -> bool:
        return self.wanted

    def answer(self, message: Message, context: Context) -> None:
        self.answered.append((message, context))

    def close(self) -> None:
        pass

    def worked_on(self) -> bool:
        return INSTRUCTION in self.answered[0][0].content

    def report(self) -> Report:
        return Report.model_validate_json(str(self.answered[0][0].content.config_records[REPORT][JSON_KEY]))


@pytest.fixture
def home(tmp_path):
    made = make_home(tmp_path / "site")
    made.processes.mkdir()
    return made


@pytest.fixture
def gate(home):
    made = Gate(home, None)
    yield made
    made.close()


@pytest.fixture
def task(home, question, context):
    def build(content: dict[str, bytes], *, approved: bool = True) -> Asked:
        if approved:
            approvals = Approvals(home)
            approvals.approve(approvals.keep(content))
        return Asked(Input(question, context, build_fab_from_files(content)[0], 1))

    return build


@contextmanager
def unwritable(home):
    """Let nothing be written to the audit log, as on a full disk."""
    aside = home.audit.path.with_suffix(".aside")
    home.audit.path.rename(aside)
    home.audit.path.mkdir()
    yield
    home.audit.path.rmdir()
    aside.rename(home.audit.path)


def fixed(*_, **__):
    """Stand for a call that would change a disk which can only be read."""
    raise OSError(errno.EROFS, "Read-only file system")


def events(home) -> list[str]:
    return [entry.event for entry in home.audit.entries()]


def kill_idle(gate) -> int:
    process = gate.worker.process
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    return process


def test_a_worker_killed_between_two_tasks_costs_neither(gate, home, task):
    first = task(small_bundle())
    gate.handle(first)
    lost = kill_idle(gate)
    gate.handle(again := Asked(first.given))
    assert again.worked_on()
    assert gate.worker.process != lost
    assert events(home)[-3:] == ["task.started", "worker.lost", "task.answered"]
    assert [entry.details for entry in home.audit.entries() if entry.event == "worker.lost"] == [
        {"why": "killed by signal 9"}
    ]


def test_the_gate_holds_neither_question_nor_answer_once_both_are_done_with(gate, question, task):
    question.content["model"] = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    # The worker is started before: what is watched is a round like any other.
    gate.handle(asked := task(small_bundle()))
    asked.answered.clear()
    with no_search_for_garbage():
        gate.handle(asked)
        sent = Watched(asked.answered[0][0].content)
        assert sent.held() == ["instruction", "model"]
        asked.answered.clear()
        assert sent.held() == []


@pytest.mark.parametrize("approved", [True, False], ids=["worked on", "made to wait"])
def test_the_gate_holds_no_question_that_it_has_answered(gate, question, task, approved):
    question.content["model"] = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    came = Watched(question.content)
    with no_search_for_garbage():
        gate.handle(task(small_bundle(), approved=approved))
        # pytest holds the question itself.
        question.content.clear()
        assert came.held() == []


def test_a_lost_worker_of_other_code_is_replaced_as_well(gate, home, task):
    gate.handle(task(small_bundle()))
    kill_idle(gate)
    gate.handle(other := task(small_bundle("x = 1")))
    assert other.worked_on()
    assert events(home).count("worker.lost") == 1


def test_a_silent_server_and_an_unwritable_log_do_not_end_the_gate(gate, home, caplog):
    now = [0.0]
    gate.contact = Contact(home, lambda *_: [failed("port", "closed", "open it")], lambda: now[0])
    home.ca.write_text("no matter")
    now[0] += UNHEARD + 1

    class Silent:
        asked = 0

        def claim(self):
            self.asked += 1
            if self.asked == 3:
                raise Enough

    gate.link = Silent()
    with unwritable(home), pytest.raises(Enough):
        gate.serve()
    assert "the server is not reached: port: closed -> open it" in caplog.text
    assert "not in the audit log: server.unreachable" in caplog.text


def test_a_task_that_is_gone_while_nothing_can_be_written_is_told_in_the_log(gate, home, task, caplog, monkeypatch):
    content = small_bundle("import time")
    asked = task({**content, "client/app.py": content["client/app.py"].replace(*SLOW)})
    asked.wanted = False
    write = home.audit.append

    def append(event, **details):
        if event == "task.gone":
            home.audit.path.unlink()
            home.audit.path.mkdir()
        return write(event, **details)

    monkeypatch.setattr(home.audit, "append", append)
    gate.handle(asked)
    assert asked.answered == []
    assert "not in the audit log: task.gone" in caplog.text


def test_a_failure_that_cannot_be_written_down_is_answered_without_its_reason(gate, home, task, caplog):
    asked = task(small_bundle())
    home.config_file.write_text("data = /secret/Meier")
    with unwritable(home):
        gate.handle(asked)
    assert asked.report().error.startswith("AuditError: the site's audit log cannot be written")
    assert "not in the audit log: task.failed" in caplog.text


def test_a_task_is_not_worked_on_while_its_line_cannot_be_written_and_is_once_it_can(gate, home, task):
    first = task(small_bundle())
    with unwritable(home):
        gate.handle(first)
    assert first.report().error.startswith("AuditError: the site's audit log cannot be written")
    assert gate.worker is None
    gate.handle(again := Asked(first.given))
    assert again.worked_on()


def test_code_that_waits_stands_in_the_log_once_it_can_be_written(gate, home, task):
    asked = task(small_bundle(), approved=False)
    with unwritable(home):
        gate.handle(asked)
    assert "code.waiting" not in events(home)
    for _ in range(2):
        gate.handle(Asked(asked.given))
    assert events(home).count("code.waiting") == 1


def test_a_stuck_node_is_ended_though_it_cannot_be_written_down(home, caplog):
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (home.processes / "processes.json").write_text(json.dumps({"node": {"process": node.pid}}))
    (home.processes / "half-sent").touch()
    with unwritable(home):
        assert end_stuck_node(home)
    assert node.wait(20) == -signal.SIGTERM
    assert "not in the audit log: node.ended" in caplog.text


def test_an_answer_goes_out_where_the_file_that_tells_of_half_a_one_cannot_be_written(home, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    done = []
    monkeypatch.setattr("client.site.nodelink.replace_atomically", full)
    with half_sent(home.processes):
        done.append("sent")
    assert done == ["sent"]
    assert "half-sent cannot be written (No space left on device): should the gate be killed" in caplog.text


def test_a_stuck_node_is_ended_though_the_file_that_tells_so_stays(home, caplog, monkeypatch):
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (home.processes / "processes.json").write_text(json.dumps({"node": {"process": node.pid}}))
    (home.processes / "half-sent").touch()
    monkeypatch.setattr(Path, "unlink", fixed)
    assert end_stuck_node(home)
    assert node.wait(20) == -signal.SIGTERM
    assert "half-sent cannot be removed (Read-only file system)" in caplog.text


def test_a_site_that_has_left_begins_no_task_though_its_process_was_not_ended(gate, home, task):
    asked = task(small_bundle())
    home.left.touch()
    gate.handle(asked)
    assert asked.report().error == "the site has left the project"
    assert not asked.report().waiting
    assert gate.worker is None
    assert events(home)[-1] == "task.refused"
