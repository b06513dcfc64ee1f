"""Asking sites and taking their answers (server/exchange.py)."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scripted_grid import Clock, PromptGrid, ScriptedGrid

from popmi_core.limits import LimitsConfig
from server.exchange import BATCH, OFFLINE_PATIENCE, Exchange, Question, Round, for_the_way
from server.wire import unpacked

NODES = {1: "monday", 2: "monday", 3: "monday"}
SITES = {1: "a", 2: "b", 3: "c"}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def questions(server_round=1, nodes=(1, 2, 3)):
    return [Question(SITES.get(node, f"s{node}"), server_round, Message(RecordDict(), node, "train")) for node in nodes]


def after(seconds):
    """Answer node by node after so many seconds; None: never."""
    return lambda message: None if (wait := seconds.get(message.metadata.dst_node_id)) is None else (wait, RecordDict())


class Asked:
    """An exchange with its clock, its grid, and what it heard of late answers."""

    def __init__(self, answer, nodes=lambda now: NODES, timeout=100.0, **limits):
        self.clock = Clock()
        self.grid = ScriptedGrid(self.clock, answer, nodes)
        self.late = []
        self.exchange = Exchange(
            self.grid,
            timeout=timeout,
            limits=LimitsConfig(**limits),
            late=self.late.append,
            clock=self.clock,
            pause=self.clock.wait,
        )

    def ask(self, *args, **kwargs):
        self.round = Round()
        replies = list(self.exchange.ask(questions(*args, **kwargs), self.round))
        return [self.round.asked[message.metadata.reply_to_message_id] for message in replies]


def test_answers_come_in_their_own_order_and_the_question_closes_with_the_last():
    asked = Asked(after({1: 9, 2: 3, 3: 6}))
    assert asked.ask() == ["b", "c", "a"]
    assert asked.clock.now < 12
    assert asked.round.missing == {}


def test_at_the_deadline_a_site_on_line_is_late_and_the_others_count():
    asked = Asked(after({1: 1, 2: 2}))
    assert asked.ask() == ["a", "b"]
    assert asked.round.missing == {"c": ("late", "no answer when the question was closed after 100 s")}


def test_a_quorum_closes_the_question_after_its_grace():
    asked = Asked(after({1: 10, 2: 12, 3: 90}), quorum=2, grace=20)
    assert asked.ask() == ["a", "b"]
    assert 32 <= asked.clock.now < 35
    assert asked.round.missing["c"][0] == "late"


def test_who_answers_within_the_grace_counts():
    assert Asked(after({1: 10, 2: 12, 3: 25}), quorum=2, grace=20).ask() == ["a", "b", "c"]


def test_an_error_is_an_answer_but_makes_no_quorum():
    def answer(message):
        if message.metadata.dst_node_id == 1:
            return 1, Message(Error(2, "gone wrong"), reply_to=message)
        return {2: (5, RecordDict()), 3: (50, RecordDict())}[message.metadata.dst_node_id]

    assert Asked(answer, quorum=2, grace=0).ask() == ["a", "b", "c"]


def test_answers_of_no_use_make_no_quorum_however_fast_they_come():
    asked = Asked(after({1: 1, 2: 2, 3: 90}), quorum=2, grace=5)
    asked.round, heard = Round(), []
    for message in asked.exchange.ask(questions(), asked.round):
        heard.append(asked.round.asked[message.metadata.reply_to_message_id])
        if heard[-1] in "ab":
            asked.round.spoilt.add(heard[-1])
    assert heard == ["a", "b", "c"]
    assert asked.round.missing == {}


def test_a_late_question_is_remembered_without_the_model_it_carried():
    model = RecordDict({"model": ArrayRecord({"x": Array(np.zeros(3))})})
    asked = Asked(after({}))
    list(asked.exchange.ask([Question("a", 1, Message(model, 1, "train"))], Round()))
    (item,) = asked.exchange._closed.values()
    assert dict(item.question.message.content) == {}
    assert item.question.message.metadata.message_type == "train"
    assert asked.exchange.busy == {"a": 1}


def test_an_answer_flower_cannot_open_costs_one_question_and_its_site_is_found():
    asked = Asked(after({1: 1, 2: 1, 3: 1}))
    pull = asked.grid.pull_messages

    def broken(keys):
        sites = {message.metadata.dst_node_id for message in asked.grid.sent if message.metadata.message_id in keys}
        if 2 in sites and asked.clock.now - asked.begun >= 1:
            raise KeyError("no such object")
        return pull(keys)

    asked.grid.pull_messages = broken
    asked.begun = 0
    assert asked.ask() == []
    outcome, why = asked.round.missing["b"]
    assert (outcome, why) == asked.round.missing["a"]
    assert outcome == "quarantined"
    assert "an answer of a, b, c is no message that Flower can open (KeyError)" in why
    asked.begun = asked.clock.now
    assert asked.ask(2) == ["a", "c"]
    assert "its answer is no message that Flower can open" in asked.round.missing["b"][1]


def test_an_error_of_the_line_ends_the_run_and_blames_nobody():
    asked = Asked(after({1: 1}))

    def away(keys):
        raise ConnectionError("the SuperLink is away")

    asked.grid.pull_messages = away
    with pytest.raises(ConnectionError, match="the SuperLink is away"):
        asked.ask()


def test_a_late_answer_is_told_with_its_round_and_is_not_handed_on():
    asked = Asked(after({1: 1, 2: 130, 3: 2}))
    asked.ask()
    asked.grid.answer = after({1: 60, 3: 60})
    assert asked.ask(2, nodes=(1, 3)) == ["a", "c"]
    (late,) = asked.late
    assert (late.site, late.server_round, late.kind) == ("b", 1, "train")
    assert 29 < late.seconds < 33


def test_a_site_that_has_not_answered_is_busy_until_it_has():
    asked = Asked(after({1: 1, 2: 130, 3: 2}))
    asked.ask()
    assert asked.exchange.busy == {"b": 1}
    asked.grid.answer = after({1: 60, 3: 60})
    asked.ask(2, nodes=(1, 3))
    assert asked.exchange.busy == {}


def test_a_site_that_never_answers_is_free_again_when_its_question_has_expired():
    asked = Asked(after({1: 1, 3: 1}))
    asked.ask()
    assert asked.exchange.busy == {"b": 1}
    asked.clock.wait(101)
    assert asked.exchange.busy == {}


def test_flowers_word_that_a_late_question_expired_is_not_called_an_answer():
    asked = Asked(
        lambda m: (150, Message(Error(3, "expired"), reply_to=m)) if m.metadata.dst_node_id == 2 else (1, RecordDict())
    )
    asked.ask()
    asked.grid.answer = after({1: 80, 3: 80})
    asked.ask(2, nodes=(1, 3))
    assert asked.late == []


def test_a_site_that_restarts_is_asked_anew():
    asked = Asked(after({1: 1, 3: 1}), nodes=lambda now: NODES if now < 20 else {**NODES, 2: "tuesday"})
    asked.grid.answer = lambda m: (2, RecordDict()) if m.metadata.dst_node_id != 2 or asked.clock.now > 15 else None
    assert asked.ask() == ["a", "c", "b"]
    assert len(asked.grid.sent) == 4
    assert asked.clock.now < 40


def test_a_site_that_restarts_again_and_again_is_given_up_with_the_number():
    asked = Asked(after({1: 1, 3: 1}), nodes=lambda now: {**NODES, 2: f"start {int(now // 10)}"}, again=2)
    asked.ask()
    assert asked.round.missing["b"][0] == "failed"
    assert "restarted 3 time(s)" in asked.round.missing["b"][1]
    assert asked.clock.now < 60


def test_a_site_that_drops_out_is_unreachable_after_a_while_and_the_others_go_on():
    asked = Asked(after({1: 1, 3: 80}), nodes=lambda now: NODES if now < 10 else {1: "monday", 3: "monday"})
    assert asked.ask() == ["a", "c"]
    outcome, why = asked.round.missing["b"]
    assert outcome == "unreachable"
    assert f"off line for {OFFLINE_PATIENCE:.0f} s" in why or "off line for 4" in why


def test_a_line_that_drops_for_a_moment_loses_nothing():
    def nodes(now):
        return {1: "monday", 3: "monday"} if 10 < now < 30 else NODES

    assert Asked(after({1: 1, 2: 40, 3: 2}), nodes=nodes).ask() == ["a", "c", "b"]


def test_a_site_off_line_at_the_deadline_is_called_unreachable():
    asked = Asked(after({1: 1, 3: 1}), nodes=lambda now: NODES if now < 5 else {1: "monday", 3: "monday"}, timeout=30)
    asked.ask()
    assert asked.round.missing["b"] == ("unreachable", "off line when the question was closed after 30 s")


def test_answers_are_fetched_a_few_at_a_time():
    nodes = tuple(range(1, 31))
    asked = Asked(after(dict.fromkeys(nodes, 1)), nodes=lambda now: dict.fromkeys(nodes, "monday"))
    assert len(asked.ask(nodes=nodes)) == 30
    assert max(asked.grid.pulled) <= BATCH


def test_a_question_flower_does_not_take_is_told():
    asked = Asked(after({1: 1, 3: 1}))
    push = asked.grid.push_messages
    asked.grid.push_messages = lambda messages: [None] if messages[0].metadata.dst_node_id == 2 else push(messages)
    assert asked.ask() == ["a", "c"]
    assert asked.round.missing["b"][0] == "unreachable"
    assert "b" in asked.round.asked.values()


def test_a_grid_that_answers_at_once_is_asked_site_by_site():
    open_at_once = []
    grid = PromptGrid(lambda message: open_at_once.append(len(grid._replies)) or RecordDict())
    exchange = Exchange(grid, timeout=5, limits=LimitsConfig())
    round_ = Round()
    assert len(list(exchange.ask(questions(), round_))) == 3
    assert open_at_once == [0, 0, 0]


def test_who_does_not_answer_at_once_on_such_a_grid_never_will():
    grid = PromptGrid(lambda message: None if message.metadata.dst_node_id == 2 else RecordDict())
    exchange = Exchange(grid, timeout=3600, limits=LimitsConfig())
    round_ = Round()
    assert len(list(exchange.ask(questions(), round_))) == 2
    assert round_.missing == {"b": ("unreachable", "no answer")}
    assert exchange.busy == {}


def test_a_second_question_has_a_life_of_its_own():
    asked = Asked(after({1: 1, 2: 1, 3: 1}))
    asked.ask()
    first = asked.round
    asked.ask(2)
    assert set(first.asked).isdisjoint(asked.round.asked)


def test_what_many_sites_are_sent_is_packed_once_and_the_questions_stay_as_they_were():
    model = ArrayRecord({name: Array(np.full(3, 0.5, np.float32)) for name in "ba"})
    own = ArrayRecord({"x": Array(np.arange(2))})
    asked = [
        Question("s", 1, Message(RecordDict({"model": model, **extra}), 1, "train", group_id="1"))
        for extra in ({}, {"own": own})
    ]
    first, second = for_the_way(asked)
    assert first.message.content["model"] is second.message.content["model"]
    assert list(first.message.content["model"]) == ["safetensors"]
    assert first.message.metadata.group_id == "1"
    assert list(asked[0].message.content["model"]) == ["b", "a"]
    there = unpacked(second.message.content)
    assert list(there["model"]) == ["b", "a"]
    assert there["own"]["x"].numpy().tolist() == [0, 1]


def crashing(times):
    """Answer after a second; node 2 tells so many times that what worked at its question ended."""
    left = [times]

    def answer(message):
        if message.metadata.dst_node_id == 2 and left[0] > 0:
            left[0] -= 1
            return 1, Message(Error(8, "ClientApp stopped responding."), reply_to=message)
        return 1, RecordDict()

    return answer


def test_a_site_whose_worker_s_keeper_was_killed_is_asked_anew():
    asked = Asked(crashing(2), again=2)
    assert sorted(asked.ask()) == ["a", "b", "c"]
    assert len(asked.grid.sent) == 5
    assert asked.round.missing == {}


def test_one_that_is_killed_again_and_again_is_given_up_with_flowers_word():
    asked = Asked(crashing(9), again=2)
    replies = list(asked.exchange.ask(questions(), Round()))
    assert [message.error.code for message in replies if message.has_error()] == [8]
    assert len(asked.grid.sent) == 5
