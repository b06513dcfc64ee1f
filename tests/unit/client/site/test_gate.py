"""The gate: what it answers to approved, unapproved and damaged code, in a pause, and when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from site_parts import make_home, small_bundle

from client.site import gate as gates
from client.site.answers import answer
from client.site.approval import Approvals
from client.site.gate import Gate, end_stuck_node
from client.site.home import SiteHome
from client.site.nodelink import Input, half_sent
from client.site.run import pause
from popmi_core.deployment import code_hash
from popmi_core.protocol import INSTRUCTION, JSON_KEY, REPORT, Report


@dataclass
class FakeTask:
    """A task as the node would hand it out; keeps what it was answered."""

    given: Input | None
    answered: list[tuple[Message, Context]] = field(default_factory=list)
    wanted: bool = True
    away: bool = False
    closed: bool = False

    def take(self) -> Input | None:
        return self.given

    def alive(self) -> bool:
        return self.wanted

    def answer(self, message: Message, context: Context) -> None:
        if self.away:
            raise httpx.ConnectError("no node")
        self.answered.append((message, context))

    def close(self) -> None:
        self.closed = True


class Enough(Exception):
    """Ends a gate's loop once a test has seen what it wanted."""


class FakeLink:
    """A node with these tasks, then none; an exception among them is raised."""

    def __init__(self, *tasks: FakeTask | Exception) -> None:
        self.tasks = list(tasks)

    def claim(self) -> FakeTask | None:
        if not self.tasks:
            return None
        if isinstance(first := self.tasks.pop(0), Exception):
            raise first
        return first


@pytest.fixture
def home(tmp_path) -> SiteHome:
    return make_home(tmp_path / "site")


@pytest.fixture
def gate(home):
    made = Gate(home, FakeLink())
    yield made
    made.close()


@pytest.fixture
def task(question, context):
    def build(content: dict[str, bytes]) -> FakeTask:
        return FakeTask(Input(question, context, build_fab_from_files(content)[0], 1))

    return build


def report_of(task: FakeTask) -> Report:
    return Report.model_validate_json(str(task.answered[0][0].content.config_records[REPORT][JSON_KEY]))


def approve(home: SiteHome, content: dict[str, bytes]) -> str:
    approvals = Approvals(home)
    code = approvals.keep(content)
    approvals.approve(code)
    return code


def events(home: SiteHome) -> list[str]:
    return [entry.event for entry in home.audit.entries()]


def test_unapproved_code_is_kept_told_and_never_imported(gate, home, task, tmp_path):
    mark = tmp_path / "imported"
    content = small_bundle(f"open({str(mark)!r}, 'w').close()")
    asked = task(content)
    gate.handle(asked)
    report, code = report_of(asked), code_hash(content)
    assert report.waiting
    assert report.error == f"waiting for approval of code {code[:12]}: at the site, `popmi site approve`"
    assert (report.run, report.server_round, report.site) == ("r", 3, "north")
    assert not asked.answered[0][0].content.array_records
    assert Approvals(home).content(code) == content
    assert not mark.exists()
    assert gate.worker is None
    # Approved, the very same bundle runs: the mark shows that it would have told on an import.
    Approvals(home).approve(code)
    gate.handle(again := task(content))
    assert mark.exists()
    assert INSTRUCTION in again.answered[0][0].content


def test_code_that_waits_is_in_the_log_once_however_often_the_server_asks(gate, home, task):
    for _ in range(3):
        gate.handle(task(small_bundle()))
    assert events(home).count("code.waiting") == 1


def test_one_changed_byte_is_other_code(gate, home, task):
    content = small_bundle()
    approve(home, content)
    changed = {**content, "client/app.py": content["client/app.py"] + b"\n"}
    gate.handle(asked := task(changed))
    assert report_of(asked).waiting


def test_withdrawn_code_runs_no_more(gate, home, task):
    code = approve(home, small_bundle())
    Approvals(home).withdraw(code)
    gate.handle(asked := task(small_bundle()))
    assert report_of(asked).waiting


def test_approved_code_gets_this_sites_own_description(gate, home, task):
    content = small_bundle("import json")
    told = (
        b'    message.content.config_records["instruction"]["json"] = json.dumps(dict(context.node_config))\n    return'
    )
    content["client/app.py"] = content["client/app.py"].replace(b"    return", told)
    approve(home, content)
    gate.handle(asked := task(content))
    seen = json.loads(str(asked.answered[0][0].content.config_records[INSTRUCTION][JSON_KEY]))
    assert seen == {"site": "north", "data": "phantom:phantom_slide", "state": str(home.state)}
    assert events(home)[-2:] == ["task.started", "task.answered"]


def test_the_worker_stays_for_the_same_code_and_goes_for_other_code(gate, home, task):
    one, other = small_bundle(), small_bundle("x = 1")
    for content in (one, other):
        approve(home, content)
    gate.handle(task(one))
    first = gate.worker.process
    gate.handle(task(one))
    assert gate.worker.process == first
    gate.handle(task(other))
    assert gate.worker.process != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_lost_worker_is_told_and_the_next_task_has_a_new_one(gate, home, task):
    content = small_bundle("import os")
    content["client/app.py"] = content["client/app.py"].replace(
        b"    return", b"    os.kill(os.getpid(), 9)\n    return"
    )
    approve(home, content)
    gate.handle(asked := task(content))
    assert report_of(asked).error == "the site's worker was lost: killed by signal 9 (9 is often memory)"
    assert not report_of(asked).waiting
    approve(home, small_bundle())
    gate.handle(again := task(small_bundle()))
    assert INSTRUCTION in again.answered[0][0].content


def test_an_exception_past_the_app_is_told_without_its_text(gate, home, task):
    content = small_bundle('raise OSError("Meier_Anna.dcm")')
    approve(home, content)
    gate.handle(asked := task(content))
    told = report_of(asked).error
    assert (
        told
        == "outside the app's own care: OSError at app.py:4 in <module>. The full text is in this site's own log only."
    )


def test_a_worker_that_cannot_be_started_is_told_without_paths(gate, home, task, monkeypatch):
    approve(home, small_bundle())

    def full(*_):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(gates, "lay_out", full)
    gate.handle(asked := task(small_bundle()))
    assert report_of(asked).error.startswith("OSError at ")
    assert "secret" not in report_of(asked).error


def test_damaged_bundles_and_damaged_approvals_let_nothing_run(gate, home, question, context, task):
    gate.handle(asked := FakeTask(Input(question, context, b"no zip", 1)))
    assert "could not be judged" in report_of(asked).error
    approve(home, small_bundle())
    home.approved.write_text("{")
    gate.handle(asked := task(small_bundle()))
    assert "could not be judged" in report_of(asked).error
    assert gate.worker is None


def test_a_full_disk_keeps_no_bundle_and_is_told_without_paths(gate, home, task, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(gate.approvals, "keep", full)
    gate.handle(asked := task(small_bundle()))
    assert report_of(asked).error == "OSError: the code could not be judged. The site's own log says why."


def test_what_cannot_be_written_down_does_not_leave_the_site(gate, home, task):
    approve(home, small_bundle())
    home.audit.path.unlink()
    home.audit.path.mkdir()
    gate.handle(asked := task(small_bundle()))
    assert report_of(asked).error.startswith("AuditError: the site's audit log cannot be written")
    assert INSTRUCTION not in asked.answered[0][0].content


def test_a_pause_answers_with_its_reason_and_looks_at_nothing(gate, home, task):
    approve(home, small_bundle())
    pause(home, "scanner service until Monday")
    gate.handle(asked := task(small_bundle()))
    assert report_of(asked).error == "the site has paused: scanner service until Monday"
    assert report_of(asked).waiting
    assert gate.worker is None


def test_a_task_that_is_gone_is_let_go(gate, home, task, monkeypatch):
    content = small_bundle("import time")
    content["client/app.py"] = content["client/app.py"].replace(b"    return", b"    time.sleep(600)\n    return")
    approve(home, content)
    asked = task(content)
    asked.wanted = False
    gate.handle(asked)
    assert asked.answered == []
    assert gate.worker is None
    assert events(home)[-1] == "task.gone"


def test_a_worker_that_hangs_is_ended_when_its_question_has_expired(gate, home, task):
    content = small_bundle("import time")
    content["client/app.py"] = content["client/app.py"].replace(b"    return", b"    time.sleep(600)\n    return")
    approve(home, content)
    asked = task(content)
    asked.given.message.metadata.__dict__["_ttl"] = 1.0
    gate.handle(asked)
    assert report_of(asked).error == "the question expired before it was answered"
    assert gate.worker is None
    approve(home, small_bundle())
    gate.handle(again := task(small_bundle("x = 1")))
    assert report_of(again).waiting


def test_a_task_without_a_message_and_a_node_that_goes_away_are_survived(gate, home, task):
    gate.handle(FakeTask(None))
    approve(home, small_bundle())
    asked = task(small_bundle())
    asked.away = True
    gate.handle(asked)
    assert asked.answered == []


def test_the_loop_takes_tasks_waits_for_the_node_and_shows_that_it_lives(home, task, monkeypatch):
    monkeypatch.setattr(gates, "NODE_AWAY", 0.01)
    home.processes.mkdir()
    asked = task(small_bundle())
    made = Gate(home, FakeLink(httpx.ConnectError("not yet"), httpx.ConnectError("not yet"), asked, Enough()))
    with pytest.raises(Enough):
        made.serve()
    assert report_of(asked).waiting
    assert asked.closed
    assert (home.processes / "alive").exists()


def test_an_idle_worker_gives_its_memory_back(gate, home, task, monkeypatch):
    approve(home, small_bundle())
    gate.handle(task(small_bundle()))
    process = gate.worker.process
    monkeypatch.setattr(gates, "IDLE", -1.0)
    gate.link = FakeLink(Enough())
    with pytest.raises(Enough):
        gate.serve()
    assert gate.worker is None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_half_a_reply_ends_the_node_and_a_whole_one_does_not(home):
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    home.processes.mkdir()
    (home.processes / "processes.json").write_text(json.dumps({"node": {"process": node.pid}}))
    with half_sent(home.processes):
        assert (home.processes / "half-sent").exists()
    assert not end_stuck_node(home)
    with pytest.raises(httpx.ConnectError), half_sent(home.processes):
        raise httpx.ConnectError("gone in the middle")
    assert end_stuck_node(home)
    assert node.wait(20) == -signal.SIGTERM
    assert events(home)[-1] == "node.ended"
    assert not end_stuck_node(home)


def test_half_a_reply_without_a_known_node_is_only_noted(home):
    home.processes.mkdir()
    (home.processes / "half-sent").touch()
    assert not end_stuck_node(home)


@pytest.mark.parametrize("asked", ["no json", "[]", '{"run": 3, "server_round": "x"}'])
def test_a_question_that_makes_no_sense_is_answered_all_the_same(asked):
    message = Message(RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: asked})}), 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    told = answer(message, site="north", error="no")
    report = Report.model_validate_json(str(told.content.config_records[REPORT][JSON_KEY]))
    assert (report.run, report.server_round, report.error, report.waiting) == ("unknown", 0, "no", False)
