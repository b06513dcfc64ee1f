"""An answer is handed to the server app once it is whole (server/control/whole.py)."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import text

from popmi_core.errors import SetupError
from server.control.whole import hand_out_whole, lacks, unfinished

ANSWER, RECORD, ARRAY, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"answer", b"record", b"array", b"other"))
CONTENTS = {RECORD: b"a record", ARRAY: b"an array"}


@pytest.fixture
def store(tmp_path):
    """The SuperLink's objects: those of an announced answer, none of which has come yet, and another that has."""
    found = SqlObjectStore(str(tmp_path / "state.db"), verify=False)
    found.initialize()
    tree = ObjectTree(object_id=ANSWER, children=[ObjectTree(object_id=RECORD, children=[ObjectTree(object_id=ARRAY)])])
    with found.session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
    found.preregister(1, tree)
    found.preregister(1, ObjectTree(object_id=OTHER))
    found.put(OTHER, b"whole")
    return found


@pytest.fixture
def state(tmp_path, store):
    found = SqlLinkState(str(tmp_path / "state.db"), SimpleNamespace(), store)
    found.initialize()
    with found.session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        for answer, question in ((ANSWER, "asked"), (OTHER, "asked too")):
            session.execute(
                text(
                    "INSERT INTO message_res (message_id, run_id, reply_to_message_id, delivered_at)"
                    " VALUES (:answer, 1, :question, '')"
                ),
                {"answer": answer, "question": question},
            )
    return found


def test_an_answer_is_whole_with_its_last_object_and_not_before(state, store):
    asked = {"asked", "asked too", "never answered"}
    for name in (ANSWER, RECORD, ARRAY):
        assert unfinished(state, asked) == {"asked"}
        assert lacks(store, ANSWER)
        store.put(name, CONTENTS.get(name, b"an answer"))
    assert unfinished(state, asked) == set()
    assert not lacks(store, ANSWER)


def test_an_error_has_no_objects_and_is_whole(store):
    assert not lacks(store, hashlib.sha256(b"an error").hexdigest())


def test_objects_in_memory_are_not_looked_at(tmp_path):
    kept = SqlLinkState(str(tmp_path / "other.db"), SimpleNamespace(), ObjectStoreFactory().store())
    kept.initialize()
    assert unfinished(kept, {"asked"}) == set()


def test_the_server_app_asks_for_whole_answers_only(state, store, monkeypatch):
    seen = []
    monkeypatch.setattr(SqlLinkState, "get_message_res", lambda self, message_ids, run_id: seen.append(message_ids))
    hand_out_whole()
    state.get_message_res(message_ids={"asked", "asked too"}, run_id=1)
    assert seen == [{"asked too"}]


def test_another_flower_that_keeps_answers_elsewhere_is_refused(monkeypatch):
    monkeypatch.delattr(SqlLinkState, "get_message_res")
    with pytest.raises(SetupError, match=r"has no get_message_res, expected flwr 1\.41"):
        hand_out_whole()
