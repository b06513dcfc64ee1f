"""Flower's node between two runs: what is left of a question whose run ended while it was fetched."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeStateFactory

from client.site import node
from client.site.contact import MARK_VARIABLE

RUN = 5


class Server:
    """Sends one question, and lets its run end at a moment of its choice."""

    def __init__(self, ends_at=""):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 7
        self.ends_at = ends_at
        sent = Message(RecordDict({"c": ConfigRecord({"a": 1})}), 7, "train")
        sent.metadata.__dict__["_run_id"] = RUN
        sent.metadata.__dict__["_message_id"] = sent.object_id
        self.objects = {name: item.deflate() for name, item in get_all_nested_objects(sent).items()}
        self.question = (remove_content_from_message(sent), get_object_tree(sent))

    def receive(self):
        return self.question

    def pull_object(self, run_id, object_id):
        if self.ends_at == "pull":
            raise RunNotRunningException
        return self.objects[object_id]

    def confirm(self, run_id, message_id):
        if self.ends_at == "confirm":
            raise RunNotRunningException


@pytest.fixture
def state():
    made = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
    made.set_node_id(7)
    made.store_run(replace(Run.create_empty(RUN), fab_hash="f"))
    made.set_run_series_context(0, Context(RUN, 7, {}, RecordDict(), {}))
    return made


def fetched(fetch, state, server):
    return fetch(
        state=state,
        object_store=state.object_store,
        node_config={},
        receive=server.receive,
        get_run=None,
        get_fab=None,
        pull_object=server.pull_object,
        confirm_message_received=server.confirm,
        trusted_entities=None,
    )


def unfinished(state):
    return [task for task in state.get_tasks() if task.status.status != "finished"]


def test_a_question_that_is_fetched_whole_waits_with_its_task(state):
    assert fetched(node.fetch_whole, state, Server()) == RUN
    assert len(state.get_messages_legacy(is_reply=False)) == 1
    assert len(unfinished(state)) == 1


@pytest.mark.parametrize("moment", ["pull", "confirm"])
def test_of_a_question_whose_run_ends_meanwhile_nothing_stays(state, moment):
    assert fetched(node.fetch_whole, state, Server(moment)) is None
    assert state.get_messages_legacy(is_reply=False) == []
    assert unfinished(state) == []


def test_flower_alone_keeps_it_so_this_is_still_needed(state):
    assert fetched(internal._pull_and_store_message, state, Server("pull")) is None
    assert len(unfinished(state)) == 1


def test_the_node_fetches_so(monkeypatch):
    seen = []
    for name in ("_push_messages", "_pull_and_store_message"):
        monkeypatch.setattr(internal, name, None)
    monkeypatch.setattr(node, "flower_supernode", lambda: seen.append(internal._pull_and_store_message))
    node.main()
    assert seen == [node.next_question]


def test_a_question_is_noticed_within_a_fifth_of_the_time_it_was_waited_for(monkeypatch):
    now, pauses = [0.0], []

    def pause(seconds):
        pauses.append((now[0], seconds))
        now[0] += seconds

    monkeypatch.setattr(node, "fetch_whole", lambda **given: RUN if now[0] >= 120 else None)
    assert node.next_question(clock=lambda: now[0], pause=pause) == RUN
    assert all(seconds <= max(waited / 5, node.SOONEST) for waited, seconds in pauses)
    assert max(seconds for _, seconds in pauses) == node.LATEST
    assert len(pauses) < 70


def test_a_question_that_lies_there_is_taken_without_a_pause(state):
    server = Server()

    def pause(seconds):
        raise AssertionError("waited")

    found = fetched(lambda **given: node.next_question(pause=pause, **given), state, server)
    assert found == RUN


def test_the_node_notes_when_the_server_answers(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(internal, "_pull_and_store_message", None)
    monkeypatch.setattr(node.FleetHttpClient, "_unary_unary", lambda self, **asked: asked["path"])
    monkeypatch.setenv(MARK_VARIABLE, str(tmp_path / "heard"))
    monkeypatch.setattr(
        node, "flower_supernode", lambda: seen.append(node.FleetHttpClient._unary_unary(None, path="/p"))
    )
    node.main()
    assert seen == ["/p"]
    assert (tmp_path / "heard").exists()
