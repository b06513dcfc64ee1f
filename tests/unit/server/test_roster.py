"""Who takes part in a run."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.protocol import JSON_KEY, POOLED_SITE, REPORT, Report
from server.replies import Expected
from server.roster import Entry, Roster


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def answer(node, report):
    question = Message(RecordDict(), node, "query")
    question.metadata.__dict__["_message_id"] = f"m{node}"
    content = RecordDict({REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()})})
    return Message(content, reply_to=question)


def enrolled(*reports, num_classes=0, names=None, phantom=False, classes=0):
    roster = Roster()
    entry = Entry(names or {}, phantom, num_classes, classes)
    asked = {f"m{node}": entry.label(node) for node in range(1, len(reports) + 1)}
    replies = [answer(node, report) for node, report in enumerate(reports, 1) if report is not None]
    roster.enrol(replies, Expected("r", 0, {}, asked), entry)
    return roster


def report(site, **changes):
    return Report(run="r", server_round=0, site=site, **changes)


def test_sites_are_known_by_name_whatever_their_node():
    roster = enrolled(report("b"), report("a"))
    assert roster.nodes == {"b": 1, "a": 2}
    assert roster.trainers(pooled=False) == ["a", "b"]


def test_a_site_that_answers_with_an_error_is_refused_with_it():
    roster = enrolled(report("a"), report("b", error="DataError: no labels.csv"))
    assert roster.refused == {"b": "DataError: no labels.csv"}


def test_a_second_node_of_the_same_name_is_refused():
    assert "a second node calls itself a" in enrolled(report("a"), report("a")).refused["node 2"]


def test_a_silent_node_is_refused():
    assert "no reply" in enrolled(report("a"), None).refused["node 2"]


def test_a_node_of_another_run_is_refused():
    assert "belongs to run old" in enrolled(Report(run="old", server_round=0, site="a")).refused["node 1"]


def test_the_pooled_stand_in_trains_and_does_not_evaluate():
    roster = enrolled(report("a"), report(POOLED_SITE))
    assert roster.evaluators == ["a"]
    assert roster.trainers(pooled=True) == [POOLED_SITE]


def test_a_stopped_site_trains_no_more_but_evaluates():
    roster = enrolled(report("a"), report("b"))
    roster.stopped["b"] = "budget spent"
    assert roster.trainers(pooled=False) == ["a"]
    assert roster.evaluators == ["a", "b"]


def test_class_counts_of_all_sites_are_summed_without_the_pooled_stand_in():
    roster = enrolled(
        report("a", class_counts=(5, 0)),
        report("b", class_counts=(7, 9)),
        report(POOLED_SITE, class_counts=(12, 9)),
        num_classes=2,
    )
    assert roster.class_counts == (12, 9)
    assert enrolled(report("a")).class_counts == ()


@pytest.mark.parametrize("counts", [(), (1, 2, 3)])
def test_a_site_that_counted_other_classes_is_refused(counts):
    roster = enrolled(report("a", class_counts=counts), num_classes=2)
    assert f"images of {len(counts)} classes, expected 2" in roster.refused["a"]
    assert not roster.nodes


def test_a_site_whose_numbers_by_class_cannot_be_is_refused_and_one_that_tells_none_is_not():
    wrong = report("a", split_sizes={"val": 9}, class_table={"val": (3, 6)})
    roster = enrolled(wrong, report("b"), classes=2)
    assert "it told of 2 classes with 9 of 9 val images, expected 2 classes, each of at least 5" in roster.refused["a"]
    assert list(roster.nodes) == ["b"]


def test_a_phantom_stays_out_of_a_run_on_real_images():
    roster = enrolled(report("a", phantom=True))
    assert "phantoms, the run's are real" in roster.refused["a"]
    assert enrolled(report("a", phantom=True), phantom=True).nodes == {"a": 1}


def test_a_node_that_takes_another_site_s_name_is_refused_and_the_other_is_not_marked():
    roster = enrolled(report("b"), report("b"), names={1: "a", 2: "b"})
    assert roster.nodes == {"b": 2}
    assert roster.refused == {"a": "it calls itself b. Give the site its own name."}


def test_a_site_that_has_not_approved_the_code_waits_and_can_come_in_later():
    roster = enrolled(report("a", error="waiting for approval of code 4178e2db3421", waiting=True), names={1: "a"})
    assert roster.waiting == {"a": "waiting for approval of code 4178e2db3421"}
    entry = Entry({1: "a"}, False, 0)
    assert roster.enrol([answer(1, report("a"))], Expected("r", 0, {}, {"m1": "a"}), entry) == ["a"]
    assert (roster.waiting, roster.refused, roster.nodes) == ({}, {}, {"a": 1})


def test_a_revoked_site_is_asked_no_more_and_told_of():
    roster = enrolled(report("a"), report("b"))
    roster.drop(["a"])
    assert roster.trainers(pooled=False) == ["b"]
    assert roster.refused == {"a": "its key was revoked"}


def test_a_copy_of_an_earlier_answer_is_refused():
    roster = Roster()
    entry = Entry()
    asked = Expected("r", 0, {}, {"m1": "node 1"}, nonce="new")
    roster.enrol([answer(1, report("a", nonce="old"))], asked, entry)
    assert "repeats number 'old', expected 'new'" in roster.refused["node 1"]
