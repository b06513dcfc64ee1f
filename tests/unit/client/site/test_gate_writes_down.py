"""What the gate writes into the log: refusals with their reason, changed data, descriptions it cannot read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from site_parts import make_home, small_bundle
from small_hospital import write_hospital

from client.site.answers import reported
from client.site.approval import Approvals
from client.site.gate import Gate
from client.site.nodelink import Input
from client.site.stamp import data_stamp
from popmi_core.protocol import JSON_KEY, REPORT, Report

REPORTING = """
import json, os
def told(message, context):
    said = dict(run="r", server_round=3, site="north", num_examples=os.getpid(), **TOLD)
    from flwr.app import ConfigRecord, RecordDict
    return Message(RecordDict({"report": ConfigRecord({"json": json.dumps(said)})}), reply_to=message)
"""


@dataclass
class Asked:
    """A task as the node would hand it out; keeps what it was answered."""

    given: Input
    answered: list[tuple[Message, Context]] = field(default_factory=list)

    def take(self) -> Input:
        return self.given

    def alive(self) -> bool:
        return True

    def answer(self, message: Message, context: Context) -> None:
        self.answered.append((message, context))

    def report(self) -> Report:
        return Report.model_validate_json(str(self.answered[0][0].content.config_records[REPORT][JSON_KEY]))


@pytest.fixture
def hospital(tmp_path):
    return write_hospital(tmp_path)


@pytest.fixture
def home(tmp_path, hospital):
    return make_home(tmp_path / "site", data=str(hospital))


@pytest.fixture
def gate(home):
    made = Gate(home, None)
    yield made
    made.close()


@pytest.fixture
def ask(gate, home, question, context):
    def asked(**told) -> Asked:
        content = small_bundle(REPORTING.replace("TOLD", repr(told)))
        content["client/app.py"] = content["client/app.py"].replace(
            b"return Message(message.content, reply_to=message)", b"return told(message, context)"
        )
        approvals = Approvals(home)
        approvals.approve(approvals.keep(content))
        task = Asked(Input(question, context, build_fab_from_files(content)[0], 1))
        gate.handle(task)
        return task

    return asked


def last(home):
    return list(home.audit.entries())[-1]


def test_data_that_are_refused_stand_in_the_log_with_the_reason(ask, home):
    ask(error="DataError: site north: 1 label(s) in 2 row(s) have no class (rows 3, 5).")
    assert last(home).event == "task.refused"
    assert last(home).details["error"].endswith("have no class (rows 3, 5).")


def test_a_budget_that_is_spent_stands_in_the_log(ask, home):
    ask(error="PrivacyError: budget spent", stopped=True)
    assert (last(home).event, last(home).details["stopped"]) == ("task.refused", True)


def test_rows_left_out_and_epsilon_stand_in_the_log_of_a_good_answer(ask, home):
    ask(skipped_rows=3, epsilon=1.5)
    assert last(home).event == "task.answered"
    assert (last(home).details["skipped_rows"], last(home).details["epsilon"]) == (3, 1.5)


@pytest.mark.parametrize("text", ["no json", "[]", '{"error": 3}', '{"error": null}'])
def test_a_report_that_makes_no_sense_is_written_down_without(text, question):
    reply = Message(RecordDict({REPORT: ConfigRecord({JSON_KEY: text})}), reply_to=question)
    assert reported(reply) == {}


def test_changed_data_are_read_by_a_new_worker_and_stand_in_the_log(ask, home, hospital):
    first = ask().report().num_examples
    assert ask().report().num_examples == first
    (hospital / "images" / "anna00.png").unlink()
    assert ask().report().num_examples != first
    events = [entry.event for entry in home.audit.entries()]
    assert events.count("data.changed") == 1
    table = hospital / "labels.csv"
    table.write_text(table.read_text() + "\n")
    ask()
    assert [entry.event for entry in home.audit.entries()].count("data.changed") == 2


def test_a_stamp_knows_every_file_that_is_read_and_no_hidden_one(tmp_path, hospital):
    words = tmp_path / "words.csv"
    words.write_text("Muttermal,nv\n")
    specification = f"{hospital}#labels={words}"
    seen = [data_stamp(specification)]
    (hospital / ".DS_Store").write_text("x")
    assert data_stamp(specification) == seen[0]
    words.write_text("Muttermal,mel\nx,nv\n")
    seen.append(data_stamp(specification))
    (tmp_path / "dataset.json").write_text("{}")
    seen.append(data_stamp(specification))
    (hospital / "images" / "anna01.png").write_bytes(b"cut")
    seen.append(data_stamp(specification))
    (hospital / "labels.csv").unlink()
    seen.append(data_stamp(specification))
    assert len(set(seen)) == 5
    assert data_stamp("phantom:a") == data_stamp("phantom:a") != data_stamp("phantom:b")
    assert data_stamp(str(tmp_path / "gone")) != data_stamp(str(tmp_path / "gone too"))


def test_a_site_whose_own_folder_lies_among_its_images_reads_them_once(tmp_path):
    home = make_home(tmp_path / "site", data=str(tmp_path))
    before = data_stamp(str(tmp_path), apart=home.folder)
    home.audit.append("more")
    assert data_stamp(str(tmp_path), apart=home.folder) == before != data_stamp(str(tmp_path))


def test_a_description_that_cannot_be_read_is_answered_without_its_text(ask, home):
    home.config_file.write_text("data = /secret/Meier")
    task = ask()
    assert task.report().site == "north"
    assert task.report().error.startswith("SetupError at home.py:")
    assert "Meier" not in task.report().error
    assert last(home).event == "task.failed"


def test_a_report_is_json_for_the_log(ask, home):
    ask()
    assert json.loads(last(home).model_dump_json())["details"]["kind"] == "train"
