"""The gate's half of a conversation with this site's SuperNode: claim a task, take its message, answer it.

Flower 1.41's node waits for the reply to the message it has pulled, and for nothing else. A worker that dies between
two calls can leave it waiting for ever, so the order of the calls here differs from ``flwr-clientapp``'s, and what
cannot be ordered is written down (``half_sent``), so that the next gate ends the node instead of waiting with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime.tracing import RuntimeTracingInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from popmi_core.atomic import replace_atomically

log = logging.getLogger("popmi.gate")
CLAIM = "/flwr.proto.Runtime/AcquireTask"
BEAT = 10.0
"""Seconds between two heartbeats; Flower gives a task up after 30 without one."""
UNHEARD = 60.0
"""Seconds without an answer to a heartbeat after which the task is given up."""


@dataclass(frozen=True)
class Input:
    """What a task brings: the server's message, the node's context, and the bundle it wants to run."""

    message: Message
    context: Context
    bundle: bytes
    task_id: int


class Task:
    """One claimed task; its token speaks for it.

    Args:
        address: The node's, ``host:port`` on this machine.
        token: From the claim.
    """

    def __init__(self, address: str, token: str, processes: Path) -> None:
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeTracingInterceptor(),
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
        )
        self._processes = processes
        self._heard = self._beaten = time.monotonic()

    def take(self, seconds: float = 10.0) -> Input | None:
        """Return the task's input; None if its message is gone, and the node tells the server so within 30 seconds.

        The message is asked for first: a gate that dies after that leaves a task the node gives up by itself.
        """
        until = time.monotonic() + seconds
        pulled = self._client.PullMessages(PullAppMessagesRequest())
        # The node shows a task a moment before its message.
        while not pulled.messages_list and time.monotonic() < until:
            time.sleep(0.2)
            pulled = self._client.PullMessages(PullAppMessagesRequest())
        told = self._client.PullTaskInput(PullTaskInputRequest())
        if not pulled.messages_list:
            log.warning("a task came without its message: an earlier gate ended with it in hand")
            return None
        context = context_from_proto(told.context)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = told.task_id, context.run_id, context.node_id
        message = self._inflate(pulled.message_object_trees[0], context)
        return Input(message, context, fab_from_proto(told.fab).content, told.task_id)

    def alive(self) -> bool:
        """Tell the node that the task is being worked at, if it is time to; return whether it still wants it."""
        now = time.monotonic()
        if now - self._beaten < BEAT:
            return True
        self._beaten = now
        try:
            wanted = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                return False
            wanted = now - self._heard < UNHEARD
        except httpx.TransportError:
            return now - self._heard < UNHEARD
        self._heard = now if wanted else self._heard
        return wanted

    def answer(self, message: Message, context: Context) -> None:
        """Give the node the reply, and the context to keep for the run's next task.

        Raises:
            httpx.HTTPError: If the node does not take it.
        """
        with half_sent(self._processes):
            push_message(self._client, message, context)
        push_task_output(self._client, context, SubStatus.COMPLETED, "")

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _inflate(self, tree: ObjectTree, context: Context) -> Message:
        node = Node(node_id=context.node_id)
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id),
            make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id),
            return_type=Message,
        )
        # A message does not carry its own id.
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message


class NodeLink:
    """Claims tasks from the node at ``address``; ``secret`` is what node and gate share."""

    def __init__(self, address: str, secret: bytes, processes: Path) -> None:
        self.address, self.processes = address, processes
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeTracingInterceptor(),
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({CLAIM})),
            ],
        )

    def claim(self) -> Task | None:
        """Return the next task of a client app, None where there is none.

        Raises:
            httpx.HTTPError: If the node does not answer.
        """
        told = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not told.HasField("task") or not told.token:
            return None
        return Task(self.address, told.token, self.processes)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


@contextmanager
def half_sent(processes: Path) -> Iterator[None]:
    """Keep the file ``half-sent`` while an answer is on its way into the node; it stays where the sending breaks off.

    Half an answer would keep the node waiting for ever, so a gate that finds the file ends the node
    (``end_stuck_node``). An answer is sent also where the file cannot be written or removed.
    """
    file = processes / "half-sent"
    try:
        replace_atomically(file, b"")
    except OSError as error:
        # The disk is full. The file helps only if the gate is killed while it sends; the answer is wanted in any case.
        log.warning(
            "an answer is sent though %s cannot be written (%s): should the gate be killed before it is sent whole, "
            "start `popmi site run` again",
            file,
            error.strerror,
        )
    yield
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        # The answer is sent whole; that must still be told to the node, which waits for it.
        log.warning("%s cannot be removed (%s): the next gate ends the node without need", file, error.strerror)
