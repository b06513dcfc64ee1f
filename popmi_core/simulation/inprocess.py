"""A Flower grid inside one process: the deployed server and client apps, no network, no second process.

Every message is serialised to the bytes it has on the wire and parsed again, in both directions, so that nothing
is shared by reference that would not be shared between hospitals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.protocol import Assignment, Progress

SERVER_NODE_ID = 1
FIRST_SITE_NODE_ID = 1001
CLIENT_APP_FAILED = 2
RUN_ID = 1

log = logging.getLogger("popmi.grid")


@dataclass
class WireTraffic:
    """Bytes that crossed the (imagined) wire, as serialised messages."""

    down: int = 0
    up: int = 0


class InProcessGrid(Grid):
    """Runs each message's client app at once, in the order of the messages."""

    answers_at_once = True

    def __init__(self, client_app: ClientApp, lineup: Iterable[Assignment], run_config: Mapping[str, Any]) -> None:
        self._client_app = client_app
        self._run = replace(Run.create_empty(RUN_ID), override_config=dict(run_config))
        self.traffic = WireTraffic()
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={"site": item.site, "data": "\n".join(item.data), "state": item.state},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node_id, item in enumerate(lineup, start=FIRST_SITE_NODE_ID)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take over a run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid serves."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message (Flower's older way to make one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the sites' node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run every message's handler; the replies wait for ``pull_messages``."""
        return [self._handle(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send and wait; without a network there is nothing to time out on."""
        return self.pull_messages(self.push_messages(messages))

    def _handle(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = message_id = str(uuid4())
        sent = message_to_proto(message).SerializeToString()
        self.traffic.down += len(sent)
        begun = time.perf_counter()
        node_id = message.metadata.dst_node_id
        received = message_from_proto(ProtoMessage.FromString(sent))
        TaskIdentity.node_id = node_id
        try:
            answer = self._client_app(received, self._contexts[node_id])
            returned = message_to_proto(answer).SerializeToString()
        except Exception as error:
            # What a SuperNode does when an app raises past its own handlers.
            log.exception("client app of node %d failed", node_id)
            failure = Message(Error(CLIENT_APP_FAILED, type(error).__name__), reply_to=received)
            returned = message_to_proto(failure).SerializeToString()
        finally:
            TaskIdentity.node_id = SERVER_NODE_ID
        self.traffic.up += len(returned)
        self._replies[message_id] = message_from_proto(ProtoMessage.FromString(returned))
        self._tell(message, time.perf_counter() - begun)
        return message_id

    def _tell(self, message: Message, seconds: float) -> None:
        context = self._contexts[message.metadata.dst_node_id]
        told = Progress(
            kind="site", site=str(context.node_config["site"]), phase=message.metadata.message_type, seconds=seconds
        )
        log.debug("%s: %s took %.1f s", told.site, told.phase, seconds, extra={"progress": told})


def run_inprocess(
    server_app: ServerApp, client_app: ClientApp, lineup: Iterable[Assignment], run_config: Mapping[str, Any]
) -> WireTraffic:
    """Run a whole federated run in this process and return what would have crossed the wire.

    Raises:
        Whatever the server app raises.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID
    grid = InProcessGrid(client_app, lineup, run_config)
    context = Context(
        run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server_app(grid, context)
    return grid.traffic
