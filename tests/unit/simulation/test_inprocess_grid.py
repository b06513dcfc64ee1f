"""The in-process grid: messages are bytes in between, faults are replies."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.protocol import Assignment
from popmi_core.simulation import InProcessGrid

LINEUP = tuple(Assignment(site=site, data=("phantom:x",), state="s") for site in ("a", "b"))


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def messages(grid):
    return [Message(RecordDict({"x": ArrayRecord()}), node, "train") for node in grid.get_node_ids()]


def echo(message, context):
    return Message(message.content, reply_to=message)


def test_every_message_gets_its_own_reply_and_the_bytes_are_counted():
    grid = InProcessGrid(echo, LINEUP, {})
    sent = messages(grid)
    replies = grid.send_and_receive(sent)
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in sent]
    assert grid.traffic.down > 0
    assert grid.traffic.up > 0


def test_nothing_is_shared_between_the_two_ends():
    import numpy as np

    kept = []

    def keep(message, context):
        kept.append(message)
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(keep, LINEUP[:1], {})
    record = ArrayRecord({"w": Array(np.ones(3))})
    message = Message(RecordDict({"x": record}), grid.get_node_ids()[0], "train")
    (reply,) = grid.send_and_receive([message])
    assert kept[0].content["x"] is not record
    assert reply.content["x"]["w"] is not kept[0].content["x"]["w"]
    assert reply.content["x"]["w"].numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("answer", [None, "text"])
def test_an_app_that_returns_no_message_is_an_error_reply(answer):
    grid = InProcessGrid(lambda message, context: answer, LINEUP, {})
    assert all(reply.has_error() for reply in grid.send_and_receive(messages(grid)))


def test_an_exception_is_an_error_reply_without_its_text():
    def fail(message, context):
        raise ValueError("IMG_4711")

    grid = InProcessGrid(fail, LINEUP, {})
    assert [reply.error.reason for reply in grid.send_and_receive(messages(grid))] == ["ValueError"] * 2


def test_the_site_knows_its_name_and_the_server_keeps_its_identity():
    names = []

    def tell(message, context):
        names.append((context.node_config["site"], TaskIdentity.node_id == context.node_id))
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(tell, LINEUP, {})
    grid.send_and_receive(messages(grid))
    assert names == [("a", True), ("b", True)]
    assert TaskIdentity.node_id == 1


def test_a_reply_is_handed_out_once():
    grid = InProcessGrid(echo, LINEUP, {})
    ids = grid.push_messages(messages(grid))
    assert len(grid.pull_messages(ids)) == 2
    assert grid.pull_messages(ids) == []
