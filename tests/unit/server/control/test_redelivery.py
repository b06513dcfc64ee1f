"""A question that got lost on its way to a node is handed over again (server/control/redelivery.py)."""

from __future__ import annotations

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import text
from superlink_state import NODE, OTHER, link_state

from popmi_core.errors import SetupError
from server.control import redelivery
from server.control.redelivery import give_back, hand_over_again

QUESTION = "a" * 64


@pytest.fixture
def store():
    """What the SuperLink keeps of one question until its receipt is confirmed."""
    kept = ObjectStoreFactory().store()
    kept.preregister(1, ObjectTree(object_id=QUESTION))
    return kept


@pytest.fixture
def state(tmp_path, store):
    return link_state(tmp_path / "state.db", store, question=QUESTION)


def looked(state, node):
    """Return whether a node's look finds a question."""
    return bool(state._claim_message_ins_rows(node, 1))


def test_flower_alone_hands_a_question_over_once_so_this_is_still_needed(state):
    assert looked(state, NODE)
    assert not looked(state, NODE)


def test_a_question_that_never_arrived_is_found_by_the_next_look(state, store, caplog):
    assert give_back(state, store, NODE) == []
    assert looked(state, NODE)
    assert give_back(state, store, NODE) == [QUESTION]
    assert "was lost on its way to node" in caplog.text
    assert looked(state, NODE)


def test_one_whose_receipt_is_confirmed_stays_with_its_node(state, store):
    assert looked(state, NODE)
    store.delete(QUESTION)
    assert give_back(state, store, NODE) == []
    assert not looked(state, NODE)


def test_one_that_is_answered_is_not_asked_again(state, store):
    assert looked(state, NODE)
    with state.session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        session.execute(
            text("INSERT INTO message_res (message_id, run_id, reply_to_message_id) VALUES ('r', 1, :name)"),
            {"name": QUESTION},
        )
    assert give_back(state, store, NODE) == []


def test_another_node_s_question_is_left_alone(state, store):
    assert looked(state, NODE)
    assert give_back(state, store, OTHER) == []
    assert not looked(state, NODE)


def test_every_look_at_the_superlink_gives_back_what_was_lost_before_it_looks(state, store, monkeypatch):
    seen = []

    def flowers(*, request, state, store):
        seen.append(looked(state, request.node.node_id))
        return PullMessagesResponse()

    monkeypatch.setattr(fleet_handlers, "pull_messages", flowers)
    hand_over_again()
    for node in (NODE, NODE, OTHER):
        request = PullMessagesRequest(node=Node(node_id=node))
        fleet_handlers.pull_messages(request=request, state=state, store=store)
    assert seen == [True, True, False]


def test_another_flower_that_answers_looks_elsewhere_is_refused(monkeypatch):
    monkeypatch.delattr(fleet_handlers, "pull_messages")
    with pytest.raises(SetupError, match=r"has no pull_messages, expected flwr 1\.41"):
        redelivery.hand_over_again()
