"""What tests of the gate and its worker share."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.site import worker
from popmi_core.protocol import INSTRUCTION, JSON_KEY


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch) -> None:
    # pytest-xdist talks to its workers in a thread of its own, which does not live on in a fork.
    monkeypatch.setattr(worker.threading, "active_count", lambda: 1)


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 5, 7
    return


@pytest.fixture
def question() -> Message:
    asked = json.dumps({"run": "r", "server_round": 3, "more": "of a newer version"})
    message = Message(RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: asked})}), 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


@pytest.fixture
def context() -> Context:
    return Context(run_id=5, node_id=7, node_config={}, state=RecordDict(), run_config={})
