"""A grid that does what a test says at the second it says, and the clock it goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Node:
    """What Flower tells of a node that is on line."""

    node_id: int
    last_activated_at: str


class ScriptedGrid:
    """Nodes answer by ``answer(message)``: seconds until the reply and its content or a ready message; None: never.

    ``nodes(now)`` returns when each node on line was started last.
    """

    def __init__(self, clock: Clock, answer: Callable, nodes: Callable[[float], dict[int, str]]) -> None:
        self.clock, self.answer, self.nodes = clock, answer, nodes
        self.sent: list[Message] = []
        self.pulled: list[int] = []
        self._due: dict[str, tuple[float, Message]] = {}

    def push_messages(self, messages):
        ids = []
        for message in messages:
            key = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = key
            self.sent.append(message)
            found = self.answer(message)
            if found is not None:
                seconds, content = found
                reply = content if isinstance(content, Message) else Message(content, reply_to=message)
                self._due[key] = (self.clock.now + seconds, reply)
            ids.append(key)
        return ids

    def pull_messages(self, message_ids):
        ready = [key for key in message_ids if key in self._due and self._due[key][0] <= self.clock.now]
        self.pulled.append(len(ready))
        return [self._due.pop(key)[1] for key in ready]

    def get_nodes(self):
        return [Node(node, started) for node, started in self.nodes(self.clock.now).items()]

    def get_node_ids(self):
        return list(self.nodes(self.clock.now))


class PromptGrid:
    """Every question is answered at once by ``answer(message)``: content, a ready message, or None for no answer."""

    answers_at_once = True

    def __init__(self, answer: Callable) -> None:
        self.answer, self.sent = answer, []
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages):
        ids = []
        for message in messages:
            key = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = key
            self.sent.append(message)
            found = self.answer(message)
            if found is not None:
                self._replies[key] = found if isinstance(found, Message) else Message(found, reply_to=message)
            ids.append(key)
        return ids

    def pull_messages(self, message_ids):
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def get_node_ids(self):
        return [1, 2]
