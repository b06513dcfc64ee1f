"""The forked worker: it runs a bundle's own code, tells failures without their text, and its loss is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from site_parts import small_bundle

from client.site import worker
from client.site.worker import AppFailed, TaskGone, Worker, WorkerLost, lay_out
from popmi_core.errors import SetupError
from popmi_core.protocol import Report


@pytest.fixture
def start(tmp_path):
    made: list[Worker] = []

    def begin(content: dict[str, bytes]) -> Worker:
        folder = tmp_path / "code"
        lay_out(content, folder)
        made.append(Worker("c", folder))
        return made[-1]

    yield begin
    for one in made:
        try:
            one.end()
        except (ChildProcessError, OSError):
            continue


def always() -> bool:
    return True


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_bundles_code_answers_and_the_worker_stays_for_the_next_question(start, question, context):
    working = start(small_bundle())
    for _ in range(2):
        reply, left = working.work(question, context, always)
        assert reply.content == question.content
        assert reply.metadata.reply_to_message_id == "m"
        assert left.run_id == 5
    assert working.end() == "ended with status 0"


def test_the_context_comes_back_changed(start, question, context):
    body = "import flwr.app"
    content = small_bundle(body)
    keep = b'    context.state["n"] = flwr.app.ConfigRecord({"seen": 1})\n    return'
    content["client/app.py"] = content["client/app.py"].replace(b"    return", keep)
    _, left = start(content).work(question, context, always)
    assert left.state["n"]["seen"] == 1
    assert "n" not in context.state


def test_the_bundles_client_takes_the_place_of_the_installed_one(start, question, context, tmp_path):
    content = small_bundle("import client.beside\nassert client.beside.HERE")
    reply, _ = start({**content, "client/beside.py": b"HERE = True\n"}).work(question, context, always)
    assert reply.metadata.reply_to_message_id == question.metadata.message_id


def test_nothing_of_the_installed_popmi_can_be_imported(start, question, context):
    with pytest.raises(AppFailed, match="ModuleNotFoundError"):
        start(small_bundle("import popmi_core.config")).work(question, context, always)


def test_an_exceptions_text_stays_here(start, question, context):
    content = small_bundle()
    content["client/app.py"] = content["client/app.py"].replace(
        b"    return", b'    raise OSError("Meier_Anna.dcm")\n    return'
    )
    with pytest.raises(AppFailed) as told:
        start(content).work(question, context, always)
    assert "Meier" not in str(told.value)
    assert str(told.value) == "OSError at app.py:7 in train. The full text is in this site's own log only."


def test_an_import_error_is_told_without_its_text_and_again_at_the_next_question(start, question, context):
    working = start(small_bundle('raise KeyError("secret")'))
    for _ in range(2):
        with pytest.raises(AppFailed, match=r"KeyError at app\.py:4 in <module>"):
            working.work(question, context, always)


def test_a_bundle_that_names_no_client_app_is_told(start, question, context):
    content = small_bundle()
    content["client/app.py"] = b"app = 3\n"
    with pytest.raises(AppFailed, match="SetupError"):
        start(content).work(question, context, always)


@pytest.mark.parametrize(
    ("how", "said"), [("os.kill(os.getpid(), 9)", "killed by signal 9"), ("os._exit(3)", "ended with status 3")]
)
def test_a_worker_that_ends_in_the_middle_is_lost_with_how(start, question, context, how, said):
    content = small_bundle("import os")
    content["client/app.py"] = content["client/app.py"].replace(b"    return", f"    {how}\n    return".encode())
    with pytest.raises(WorkerLost, match=said):
        start(content).work(question, context, always)


def test_a_worker_killed_between_two_questions_is_noticed_at_the_next(start, question, context):
    working = start(small_bundle())
    working.work(question, context, always)
    os.kill(working.process, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="signal 9"):
        working.work(question, context, always)


def test_a_worker_tells_how_it_ended_as_often_as_it_is_asked_and_nothing_while_it_lives(start, question, context):
    working = start(small_bundle())
    working.work(question, context, always)
    assert working.ended() is None
    os.kill(working.process, signal.SIGKILL)
    os.waitid(os.P_PID, working.process, os.WEXITED | os.WNOWAIT)
    assert [working.ended(), working.ended(), working.end()] == 3 * ["killed by signal 9"]


def test_a_task_nobody_wants_any_more_ends_the_worker(start, question, context):
    content = small_bundle("import time")
    content["client/app.py"] = content["client/app.py"].replace(b"    return", b"    time.sleep(600)\n    return")
    working = start(content)
    with pytest.raises(TaskGone, match="gave the task up"):
        working.work(question, context, lambda: False)
    assert not alive(working.process)


def test_a_gate_with_threads_does_not_fork(monkeypatch, tmp_path):
    monkeypatch.setattr(worker.threading, "active_count", lambda: 2)
    with pytest.raises(SetupError, match="has 2 threads"):
        Worker("c", tmp_path)


def test_a_killed_gate_takes_its_worker_along(tmp_path):
    lay_out(small_bundle(), tmp_path / "code")
    code = (
        "import sys, time; from pathlib import Path; from client.site.worker import Worker;"
        "print(Worker('c', Path(sys.argv[1])).process, flush=True); time.sleep(600)"
    )
    gate = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "code")], stdout=subprocess.PIPE, text=True)
    process = int(gate.stdout.readline())
    assert alive(process)
    gate.kill()
    gate.wait()
    until = time.monotonic() + 20
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(process)


REAL = """
import sys
import threading
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.site.gate import warm_up
from client.site.worker import Worker, lay_out
from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.deployment import bundle_files
from popmi_core.protocol import Instruction

folder = Path(sys.argv[1])
warm_up()
content = bundle_files()
lay_out({**content, "client/app.py": content["client/app.py"] + b"\\nprint('app:', __file__)\\n"}, folder)
told = Instruction(
    run="r", server_round=1, rounds=2, seed=0, classes=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    model=ModelConfig(backbone="popmi_vit_micro", image_size=16), local=LocalConfig(), phantom_images=60,
)
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 5, 7
message = Message(RecordDict({"instruction": ConfigRecord({"json": told.model_dump_json()})}), 7, "query")
message.metadata.__dict__["_message_id"] = "m"
node = {"site": "north", "data": "phantom:phantom_slide", "state": str(folder / "state")}
worker = Worker("c", folder)
reply, _ = worker.work(message, Context(5, 7, node, RecordDict(), {}), lambda: True)
print(reply.content.config_records["report"]["json"])
worker.end()
# What the gate itself holds: no thread, no GPU, nothing of the client or of the models.
print(threading.active_count(), sys.modules["torch"].cuda.is_initialized(), "timm" in sys.modules)
print(sorted({"client.app", "client.load", "popmi_core.models"} & set(sys.modules)))
"""


def test_the_real_client_app_runs_from_its_bundle_and_the_gate_holds_nothing_of_it(tmp_path):
    folder = tmp_path / "code"
    done = subprocess.run([sys.executable, "-c", REAL, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place, told, held, imported = _ordered(done.stdout)
    assert place == f"app: {folder / 'client' / 'app.py'}"
    report = Report.model_validate_json(told)
    assert report.error is None
    assert (report.site, report.phantom, sum(report.split_sizes.values())) == ("north", True, 60)
    assert (held, imported) == ("1 False True", "[]")


def test_laying_out_repairs_and_removes_what_is_not_in_the_bundle(tmp_path):
    content = small_bundle()
    lay_out(content, tmp_path)
    (tmp_path / "client" / "app.py").write_text("changed")
    (tmp_path / "client" / "torch.py").write_text("slipped in")
    lay_out(content, tmp_path)
    there = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == content


@pytest.mark.parametrize("path", ["../out.py", "/out.py", "client/./app.py", "client/../../out.py"])
def test_a_path_that_is_not_plain_is_refused(tmp_path, path):
    with pytest.raises(SetupError, match="which is not plain"):
        lay_out({path: b""}, tmp_path / "code")
    assert not list(Path(tmp_path).rglob("out.py"))


def _ordered(output: str) -> list[str]:
    """Return the lines in the order in which gate and worker meant them: each flushes when it likes."""
    return [next(line for line in output.splitlines() if line.startswith(start)) for start in ("app:", "{", "1 ", "[")]
