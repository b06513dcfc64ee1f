"""The gate's talk with a real node's interface: every way a gate can die leaves a node that goes on."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode, Status
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from client.site import nodelink
from client.site.nodelink import NodeLink
from client.site.run import free_port

SECRET = b"s" * 32
RUN = 5


class Node:
    """A SuperNode without its server: its state, and its interface on a port of this machine."""

    def __init__(self) -> None:
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state: NodeState = factory.state()
        self.state.set_node_id(7)
        self.state.store_run(replace(Run.create_empty(RUN), fab_hash="f"))
        hashed = self.state.store_fab(Fab("", b"the bundle", {}))
        self.state.store_run(replace(Run.create_empty(RUN), fab_hash=hashed))
        self.state.set_run_series_context(0, Context(RUN, 7, {}, RecordDict(), {}))
        self.port = free_port()
        config = uvicorn.Config(create_app(factory, SECRET), host="127.0.0.1", port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def task(self) -> int:
        made = self.state.create_task(TaskType.CLIENT_APP, RUN, fab_hash="f")
        assert made is not None
        return made

    def message(self) -> None:
        arrays = ArrayRecord({"w": Array(np.ones((3, 2), np.float32))})
        sent = Message(RecordDict({"c": ConfigRecord({"a": 1}), "m": arrays}), 7, "train")
        sent.metadata.__dict__["_run_id"] = RUN
        _insert_message(sent, self.state, self.state.object_store)

    def expire(self, task: int) -> None:
        """Let the time pass after which a task without heartbeats is given up."""
        self.state.task_token_store[task].active_until = now() - timedelta(seconds=1)

    def replies(self) -> list[Message]:
        return list(self.state.get_messages_legacy(is_reply=True))

    def status(self, task: int) -> str:
        return self.state.get_tasks(task_ids=[task])[0].status.status


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.server.should_exit = True
    made.thread.join(10)


@pytest.fixture
def link(node, tmp_path):
    made = NodeLink(f"127.0.0.1:{node.port}", SECRET, tmp_path)
    yield made
    made.close()


def test_without_a_task_there_is_none_and_a_stranger_is_refused(node, link, tmp_path):
    assert link.claim() is None
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        NodeLink(f"127.0.0.1:{node.port}", b"x" * 32, tmp_path).claim()


def test_a_task_brings_message_context_and_bundle_and_its_answer_arrives_whole(node, link, tmp_path):
    task = node.task()
    node.message()
    claimed = link.claim()
    given = claimed.take()
    assert given.bundle == b"the bundle"
    assert given.message.metadata.message_type == "train"
    assert given.message.content["m"]["w"].numpy().tolist() == np.ones((3, 2)).tolist()
    assert given.context.run_id == RUN
    assert claimed.alive()
    claimed.answer(Message(given.message.content, reply_to=given.message), given.context)
    claimed.close()
    (reply,) = node.replies()
    assert not reply.has_error()
    assert reply.metadata.reply_to_message_id == given.message.metadata.message_id
    assert node.status(task) == Status.FINISHED
    assert not (tmp_path / "half-sent").exists()
    assert link.claim() is None


def test_a_gate_that_dies_at_its_task_lets_the_node_tell_so(node, link):
    task = node.task()
    node.message()
    link.claim().take()
    node.expire(task)
    (reply,) = node.replies()
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED


def test_a_gate_that_dies_before_it_took_anything_leaves_the_task_to_the_next(node, link):
    task = node.task()
    node.message()
    link.claim()
    node.expire(task)
    assert node.replies() == []
    assert link.claim().take() is not None


def test_a_gate_that_dies_right_after_the_message_leaves_a_task_that_ends(node, link, monkeypatch):
    task = node.task()
    node.message()
    claimed = link.claim()
    claimed._client.PullMessages(nodelink.PullAppMessagesRequest())
    node.expire(task)
    assert link.claim().take(seconds=0.3) is None
    node.expire(task)
    (reply,) = node.replies()
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED


def test_a_message_that_comes_a_moment_after_its_task_is_waited_for(node, link):
    node.task()
    claimed = link.claim()
    later = threading.Timer(0.5, node.message)
    later.start()
    assert claimed.take() is not None
    later.join()


def test_heartbeats_keep_a_task_and_tell_when_nobody_wants_it_any_more(node, link, monkeypatch):
    monkeypatch.setattr(nodelink, "BEAT", 0.0)
    task = node.task()
    node.message()
    claimed = link.claim()
    claimed.take()
    node.state.task_token_store[task].active_until = now() + timedelta(seconds=1)
    assert claimed.alive()
    assert node.state.task_token_store[task].active_until > now() + timedelta(seconds=10)
    node.expire(task)
    assert not claimed.alive()


def test_a_node_that_is_away_is_given_a_minute(node, link, monkeypatch):
    monkeypatch.setattr(nodelink, "BEAT", 0.0)
    node.task()
    node.message()
    claimed = link.claim()
    claimed.take()
    node.server.should_exit = True
    node.thread.join(10)
    assert claimed.alive()
    monkeypatch.setattr(nodelink, "UNHEARD", 0.0)
    assert not claimed.alive()


def test_half_an_answer_leaves_its_mark(node, link, tmp_path):
    node.task()
    node.message()
    claimed = link.claim()
    given = claimed.take()
    node.server.should_exit = True
    node.thread.join(10)
    with pytest.raises(httpx.HTTPError):
        claimed.answer(Message(given.message.content, reply_to=given.message), given.context)
    assert (tmp_path / "half-sent").exists()


def test_an_answer_is_finished_on_a_disk_that_can_only_be_read(node, link, tmp_path, monkeypatch, caplog):
    def fixed(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    task = node.task()
    node.message()
    claimed = link.claim()
    given = claimed.take()
    monkeypatch.setattr(nodelink, "replace_atomically", fixed)
    monkeypatch.setattr(Path, "unlink", fixed)
    claimed.answer(Message(given.message.content, reply_to=given.message), given.context)
    assert len(node.replies()) == 1
    assert node.status(task) == Status.FINISHED
    assert "half-sent cannot be written (Read-only file system)" in caplog.text
    assert "half-sent cannot be removed (Read-only file system)" in caplog.text
