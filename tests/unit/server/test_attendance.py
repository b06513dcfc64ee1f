"""Who is there: at the start, between rounds, and with which key (server/attendance.py)."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scripted_grid import Clock, ScriptedGrid

from popmi_core.config import parse_config
from popmi_core.errors import RunError
from popmi_core.protocol import INSTRUCTION, JSON_KEY, REPORT, Assignment, Instruction, Report, RunPlan
from server.attendance import ASK_AGAIN, Attendance
from server.desk import Desk
from server.exchange import Exchange
from server.roster import Roster

NAMES = {1: "a", 2: "b", 3: "c"}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def register(path, **changes):
    told = {name: {"state": "enrolled", "node_id": str(node)} for node, name in NAMES.items()}
    path.write_text(json.dumps(told | changes))
    return path


class Hall:
    """Sites that come on line at a second of their own and say what ``says`` lets them say."""

    def __init__(self, path, arrive=None, says=None, real=True, reads=None, **config):
        self.clock, self.heard, self.asked, self.waits = Clock(), [], [], []
        self.says, self.reads = says or {}, reads or {}
        arrive = arrive or {}
        self.grid = ScriptedGrid(
            self.clock, self.answer, lambda now: {node: "" for node in NAMES if arrive.get(node, 0) <= now}
        )
        plan = RunPlan(
            run="r",
            config=parse_config({"min_sites": 2, "limits": {"join": 300}, **config}),
            folder="f",
            data_name="skin",
            phantom=False,
            classes=("x", "y"),
            lineup=() if real else tuple(Assignment(site=name, data=("d",), state="s") for name in NAMES.values()),
            names=tuple(NAMES.values()) if real else (),
            sites_file=str(path) if real else None,
        )
        self.roster = Roster()
        desk = Desk(plan, self.roster, {}, {})
        desk.open(Exchange(self.grid, timeout=60, limits=plan.config.limits, clock=self.clock, pause=self.clock.wait))
        self.attendance = Attendance(
            plan, desk, self.heard.append, self.waits.append, clock=self.clock, pause=self.clock.wait
        )

    def answer(self, message):
        node = message.metadata.dst_node_id
        told = Instruction.model_validate_json(str(message.content.config_records[INSTRUCTION][JSON_KEY]))
        said = {"site": NAMES[node], **self.says.get(node, {})}
        report = Report(run="r", server_round=0, nonce=told.nonce, num_examples=5, **said)
        self.asked.append(node)
        # The images are read once; after that a site answers at once.
        seconds = max(1.0, self.reads.get(node, 0.0) - self.clock.now)
        assert seconds < message.metadata.ttl, "the site gives up reading before it is done"
        return seconds, RecordDict({REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()})})


def test_the_run_begins_when_all_it_expects_are_there(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={3: 100})
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a", "b", "c"]
    assert 100 <= hall.clock.now < 120


def test_after_the_time_to_join_it_begins_with_those_that_are_there(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={3: 10_000})
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a", "b"]
    assert 300 <= hall.clock.now < 320


def test_a_run_that_goes_on_does_not_wait_long_for_a_site_that_stays_away(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={2: 30, 3: 10_000})
    hall.attendance.begin(hall.grid, again=True)
    assert hall.roster.evaluators == ["a", "b"]
    assert 180 <= hall.clock.now < 190


def test_a_run_that_goes_on_waits_for_as_many_as_it_needs(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={2: 250, 3: 10_000})
    hall.attendance.begin(hall.grid, again=True)
    assert hall.roster.evaluators == ["a", "b"]
    assert 250 <= hall.clock.now < 260
    assert [list(sites) for sites in hall.waits] == [["b", "c"], []]


def test_with_too_few_it_ends_and_names_who_is_missing_and_why(tmp_path):
    hall = Hall(
        register(tmp_path / "sites.json"),
        arrive={3: 10_000},
        says={2: {"error": "DataError: rows 3 and 9 have no label"}},
    )
    with pytest.raises(RunError, match=r"1 site\(s\) joined in 300 s \(a\), at least 2 needed \(b: DataError: rows 3"):
        hall.attendance.begin(hall.grid)


def test_a_missing_site_is_named_as_not_on_line(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={2: 10_000, 3: 10_000})
    with pytest.raises(RunError, match="b: not on line; c: not on line"):
        hall.attendance.begin(hall.grid)


def test_a_site_that_waits_for_approval_comes_in_once_it_has_approved(tmp_path):
    hall = Hall(
        register(tmp_path / "sites.json"),
        says={3: {"error": "waiting for approval of code 4178e2db3421", "waiting": True}},
    )
    looks = []

    def heard(roster):
        looks.append(dict(roster.waiting))
        hall.says = {}

    hall.attendance.joined = heard
    hall.attendance.begin(hall.grid)
    assert looks[0] == {"c": "waiting for approval of code 4178e2db3421"}
    assert looks[-1] == {}
    assert hall.roster.evaluators == ["a", "b", "c"]


def test_a_newcomer_is_let_in_between_rounds_and_nobody_else_is_asked_again(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), arrive={3: 10_000})
    hall.attendance.begin(hall.grid)
    asked = len(hall.grid.sent)
    assert hall.attendance.look(hall.grid) == []
    hall.clock.now = 10_001
    assert hall.attendance.look(hall.grid) == ["c"]
    assert len(hall.grid.sent) == asked + 1


def test_a_run_whose_description_names_its_sites_takes_in_no_other(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), sites=["a", "b"])
    hall.attendance.begin(hall.grid)
    hall.clock.wait(ASK_AGAIN)
    assert hall.attendance.look(hall.grid) == []
    assert hall.roster.evaluators == ["a", "b"]
    assert "c" not in hall.roster.refused


def test_a_refused_site_is_asked_again_only_after_a_while(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), says={3: {"error": "DataError: no labels.csv"}})
    hall.attendance.look(hall.grid)
    asked = len(hall.grid.sent)
    hall.attendance.look(hall.grid)
    assert len(hall.grid.sent) == asked
    hall.says = {}
    hall.clock.wait(ASK_AGAIN)
    assert hall.attendance.look(hall.grid) == ["c"]


def test_a_node_whose_key_belongs_to_nobody_is_not_asked(tmp_path):
    hall = Hall(register(tmp_path / "sites.json", c={"state": "invited"}))
    hall.attendance.look(hall.grid)
    assert {message.metadata.dst_node_id for message in hall.grid.sent} == {1, 2}


def test_a_revoked_site_is_put_out_at_the_next_look(tmp_path):
    path = register(tmp_path / "sites.json")
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    register(path, b={"state": "revoked", "node_id": "2"})
    hall.attendance.look(hall.grid)
    assert hall.roster.evaluators == ["a", "c"]
    assert hall.roster.refused["b"] == "its key was revoked"
    assert hall.attendance.revoked("b")


def test_a_site_that_got_a_new_key_between_two_looks_comes_in_with_its_new_node(tmp_path):
    path = register(tmp_path / "sites.json", c={"state": "invited"})
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    assert hall.roster.nodes == {"a": 1, "b": 2}
    # Site b was revoked, invited and confirmed anew while a round went on: node 3 is its new one.
    register(path, b={"state": "enrolled", "node_id": "3"}, c={"state": "invited"})
    hall.says = {3: {"site": "b"}}
    hall.clock.wait(ASK_AGAIN)
    assert hall.attendance.look(hall.grid) == ["b"]
    assert hall.roster.nodes == {"a": 1, "b": 3}


def test_a_site_invited_anew_after_its_key_was_revoked_is_out_until_it_is_confirmed(tmp_path):
    path = register(tmp_path / "sites.json")
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    register(path, b={"state": "invited"})
    assert hall.attendance.desk.revoked() == ["b"]
    hall.attendance.look(hall.grid)
    assert hall.roster.evaluators == ["a", "c"]


def test_a_register_without_any_key_lets_nobody_in(tmp_path):
    hall = Hall(register(tmp_path / "sites.json", **{name: {"state": "invited"} for name in NAMES.values()}))
    assert hall.attendance.look(hall.grid) == []
    assert hall.grid.sent == []


def test_between_rounds_it_waits_for_as_many_sites_as_a_round_needs(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"))
    hall.attendance.begin(hall.grid)
    begun = hall.clock.now
    hall.grid.nodes = lambda now: {1: ""} if now < begun + 200 else {1: "", 3: ""}
    hall.attendance.between_rounds(hall.grid)
    assert 200 <= hall.clock.now - begun < 210
    # Told once when the wait begins, and once when it is over.
    assert [list(sites) for sites in hall.waits] == [["b", "c"], []]


def test_between_rounds_it_waits_for_nobody_that_it_can_do_without(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"))
    hall.attendance.begin(hall.grid)
    begun = hall.clock.now
    hall.grid.nodes = lambda now: {1: "", 2: ""}
    hall.attendance.between_rounds(hall.grid)
    assert hall.clock.now == begun


def test_after_the_time_to_join_a_round_begins_with_too_few(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"))
    hall.attendance.begin(hall.grid)
    begun = hall.clock.now
    hall.grid.nodes = lambda now: {1: ""}
    hall.attendance.between_rounds(hall.grid)
    assert 300 <= hall.clock.now - begun < 310
    assert [list(sites) for sites in hall.waits] == [["b", "c"], []]


def test_where_too_few_are_left_at_all_it_does_not_wait(tmp_path):
    path = register(tmp_path / "sites.json")
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    begun = hall.clock.now
    register(path, b={"state": "revoked"}, c={"state": "revoked"})
    hall.attendance.between_rounds(hall.grid)
    assert hall.clock.now == begun
    assert hall.roster.evaluators == ["a"]


@pytest.mark.parametrize("text", ["", "{", '{"a": 3}', "[]"])
def test_a_register_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "sites.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"register of sites .*sites.json cannot be read"):
        Hall(path).attendance.look(None)


def test_a_simulation_takes_who_is_there_and_goes_on_with_one(tmp_path):
    hall = Hall(None, says={2: {"error": "DataError: x"}, 3: {"error": "DataError: y"}}, real=False)
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a"]
    assert hall.clock.now < 10


def test_a_simulation_in_which_nobody_joins_says_so():
    hall = Hall(None, says={node: {"error": "DataError: x"} for node in NAMES}, real=False)
    with pytest.raises(RunError, match=r"no site could join the run \(a: DataError: x; b: DataError: x"):
        hall.attendance.begin(hall.grid)


def test_sites_cannot_be_asked_before_a_grid_is_open(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"))
    hall.attendance.desk.post = None
    with pytest.raises(RunError, match="no grid is open"):
        hall.attendance.look(hall.grid)


def test_a_site_that_reads_its_images_for_long_joins_once_it_has(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), reads={3: 500}, limits={"join": 900})
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a", "b", "c"]
    assert 500 <= hall.clock.now < 520
    # Asked anew only after it had answered: what is asked meanwhile would pile up at the site.
    assert hall.asked == [1, 2, 3, 3]


def test_the_run_begins_without_it_and_it_comes_in_between_rounds(tmp_path):
    hall = Hall(register(tmp_path / "sites.json"), reads={3: 500})
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a", "b"]
    hall.clock.now = 600
    assert hall.attendance.look(hall.grid) == ["c"]


EXCLUDED = {"state": "enrolled", "node_id": "2", "excluded": {"reason": "mends its scanner", "by": "anna", "since": 1}}


def test_an_excluded_site_is_not_waited_for_and_not_asked_until_it_is_included(tmp_path):
    path = register(tmp_path / "sites.json", b=EXCLUDED)
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    assert hall.roster.evaluators == ["a", "c"]
    assert hall.clock.now < 20
    assert hall.roster.excluded == {"b": "excluded by the operator: mends its scanner"}
    assert 2 not in hall.asked
    register(path)
    assert hall.attendance.look(hall.grid) == ["b"]
    assert hall.roster.excluded == {}


def test_a_site_that_is_excluded_between_two_rounds_leaves_the_run_and_its_reason_stands_there(tmp_path):
    path = register(tmp_path / "sites.json")
    hall = Hall(path)
    hall.attendance.begin(hall.grid)
    register(path, b=EXCLUDED)
    # Not while a round goes on: only a revoked key is put out then.
    assert hall.attendance.desk.revoked() == []
    hall.attendance.between_rounds(hall.grid)
    assert hall.roster.evaluators == ["a", "c"]
    assert hall.heard[-1].excluded == {"b": "excluded by the operator: mends its scanner"}
    shown = hall.roster.with_stopped([])
    assert [(item.site, item.outcome, item.reason) for item in shown] == [
        ("b", "stopped", "excluded by the operator: mends its scanner")
    ]


def test_with_too_few_left_after_exclusions_the_reason_names_them(tmp_path):
    hall = Hall(register(tmp_path / "sites.json", b=EXCLUDED, c={**EXCLUDED, "node_id": "3"}))
    with pytest.raises(RunError, match="b: excluded by the operator: mends its scanner; c: excluded"):
        hall.attendance.begin(hall.grid)


def test_a_run_that_names_its_sites_is_not_told_of_others_that_are_excluded(tmp_path):
    hall = Hall(register(tmp_path / "sites.json", b=EXCLUDED), sites=["a", "c"])
    hall.attendance.begin(hall.grid)
    assert hall.roster.excluded == {}
