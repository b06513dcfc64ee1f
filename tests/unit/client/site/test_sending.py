"""An answer arrives whole, also where the server was slow (client/site/sending.py)."""

from __future__ import annotations

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.site import node, sending
from client.site.sending import ATTEMPTS, Delivery

RUN = 5
OBJECTS = {"a": b"first", "b": b"second"}


class Server:
    """Takes objects of the newest session only; ``replaced`` announcements are followed by one it thinks up itself."""

    def __init__(self, replaced=0):
        self.replaced, self.sessions, self.taken, self.newest = replaced, 0, {}, ""

    def send(self, message, tree, runtime):
        self.sessions += 1
        told = f"s{self.sessions}"
        self.newest = told
        if self.replaced:
            self.replaced -= 1
            self.newest = "of a request that was tried again"
        return set(OBJECTS) - set(self.taken), told

    def push(self, run_id, session, name, content):
        if session != self.newest:
            raise ObjectPushError(name, run_id, session)
        self.taken[name] = content


class Store:
    def __init__(self, late=0):
        self.late = late

    def get(self, name):
        if self.late:
            self.late -= 1
            return b""
        return OBJECTS.get(name)


def delivered(server, store=None, pauses=None):
    delivery = Delivery(server.send, server.push, store or Store(), [].append if pauses is None else pauses.append)
    lacking, session = delivery.send("message", "tree", 1.0)
    for name in sorted(lacking):
        delivery.push(RUN, session, name, OBJECTS[name])


def test_what_goes_well_is_sent_once():
    server = Server()
    delivered(server)
    assert (server.taken, server.sessions) == (OBJECTS, 1)


def test_an_answer_whose_session_was_replaced_is_sent_anew_and_whole():
    server, pauses = Server(replaced=1), []
    delivered(server, pauses=pauses)
    assert (server.taken, server.sessions, pauses) == (OBJECTS, 2, [])


def test_it_is_tried_again_with_growing_pauses():
    server, pauses = Server(replaced=4), []
    delivered(server, pauses=pauses)
    assert server.taken == OBJECTS
    assert pauses == [1, 2, 4]


def test_a_server_that_takes_none_is_given_up_after_a_while():
    server, pauses = Server(replaced=99), []
    with pytest.raises(ObjectPushError):
        delivered(server, pauses=pauses)
    assert server.sessions == 1 + ATTEMPTS


def test_an_object_that_is_not_in_the_node_yet_is_waited_for():
    server, pauses = Server(replaced=1), []
    delivered(server, Store(late=3), pauses)
    assert server.taken == OBJECTS
    assert pauses == [0.5, 0.5, 0.5]


def test_an_object_that_is_lost_is_no_empty_one(monkeypatch):
    monkeypatch.setattr(Store, "get", lambda self, name: None)
    server = Server(replaced=1)
    with pytest.raises(ObjectPushError):
        delivered(server)
    assert server.taken == {}


def test_the_next_answer_begins_afresh():
    server = Server(replaced=1)
    delivery = Delivery(server.send, server.push, Store(), [].append)
    for _ in range(2):
        server.taken = {}
        lacking, session = delivery.send("message", "tree", 1.0)
        for name in sorted(lacking):
            delivery.push(RUN, session, name, OBJECTS[name])
        assert server.taken == OBJECTS


def test_the_node_sends_so(monkeypatch):
    seen = []
    for name in ("_push_messages", "_pull_and_store_message"):
        monkeypatch.setattr(node.internal, name, None)
    monkeypatch.setattr(node, "flower_supernode", lambda: seen.append(node.internal._push_messages))
    node.main()
    assert seen == [sending.push_whole]


def test_flowers_node_pushes_through_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(sending, "_push_messages", lambda **given: seen.update(given))
    sending.push_whole(state="state", object_store=Store(), send=Server().send, push_object=None)
    assert seen["send"].__self__ is seen["push_object"].__self__
    assert seen["state"] == "state"
