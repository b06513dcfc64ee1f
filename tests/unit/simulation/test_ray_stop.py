"""Stopping a run on Ray: its server waits in another thread than the one that hears Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.limits import LimitsConfig
from popmi_core.protocol import Assignment
from popmi_core.simulation import InProcessGrid
from popmi_core.simulation.rayengine import _signals_set, _Stoppable
from server.exchange import Exchange, Question, Round


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Silent(InProcessGrid):
    """A grid in which nobody answers."""

    answers_at_once = False

    def pull_messages(self, message_ids):
        return []


def grid(kind=InProcessGrid):
    return kind(lambda m, c: Message(m.content, reply_to=m), [Assignment(site="a", data=("x",), state="s")], {})


def question(grid):
    return [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]


def test_replies_pass_as_without_it():
    wrapped = _Stoppable(grid(), threading.Event())
    sent = question(wrapped)
    (reply,) = wrapped.pull_messages(wrapped.push_messages(sent))
    assert reply.metadata.reply_to_message_id == sent[0].metadata.message_id


def test_waiting_ends_when_the_run_is_stopped():
    stopping = threading.Event()
    wrapped = _Stoppable(grid(Silent), stopping)
    threading.Timer(0.2, stopping.set).start()
    exchange = Exchange(wrapped, timeout=60, limits=LimitsConfig())
    with pytest.raises(KeyboardInterrupt):
        list(exchange.ask([Question("a", 1, message) for message in question(wrapped)], Round()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.signal(number, signal.default_int_handler)
    stopping = threading.Event()
    try:
        with _signals_set(stopping):
            os.kill(os.getpid(), number)
            assert stopping.is_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _signals_set(threading.Event()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
