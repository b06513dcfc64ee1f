"""Sending an answer to the server whole, again if need be.

Flower 1.41's node sends once. If the server was slow and a request was tried again, the objects that follow belong to a
session that no longer counts; the node then throws the answer away, says nothing, and the round waits for a site that
has done its work. The server takes the same answer twice and tells each time which objects it still lacks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import start_client_internal as internal

log = logging.getLogger("popmi.node")
_push_messages = internal._push_messages
ATTEMPTS = 6
"""How often an answer is begun anew; between two of them 1, 2, 4, ... seconds pass."""


class Delivery:
    """One answer on its way.

    Args:
        send: Announces a message; returns the objects that the server lacks, and the session in which it takes them.
        push_object: Hands one object over: run, session, its name, its bytes.
        store: Where this node's objects lie.
        pause: Waits for so many seconds.
    """

    def __init__(
        self,
        send: Callable[[Message, ObjectTree, float], tuple[set[str], str]],
        push_object: Callable[[int, str, str, bytes], None],
        store: ObjectStore,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._send, self._push, self._store, self._pause = send, push_object, store, pause
        self._lock, self._whole = threading.Lock(), False
        self._announced: tuple[Message, ObjectTree, float] | None = None

    def send(self, message: Message, tree: ObjectTree, runtime: float) -> tuple[set[str], str]:
        """Announce an answer."""
        self._announced, self._whole = (message, tree, runtime), False
        return self._send(message, tree, runtime)

    def push(self, run_id: int, session: str, name: str, content: bytes) -> None:
        """Hand one object over; where its session no longer counts, the whole answer anew.

        Raises:
            ObjectPushError: If the server takes none of ``ATTEMPTS``.
        """
        try:
            if not self._whole:
                self._push(run_id, session, name, content)
            return
        except ObjectPushError:
            log.warning("the server took an object of another session; the answer is sent anew")
        # Objects go out two at a time: the first that fails sends all, the other has nothing left to do.
        with self._lock:
            if not self._whole:
                self._push_anew(run_id)
                self._whole = True

    def _push_anew(self, run_id: int) -> None:
        assert self._announced is not None
        for attempt in range(ATTEMPTS):
            lacking, session = self._send(*self._announced)
            try:
                for name in sorted(lacking):
                    self._push(run_id, session, name, self._content(name))
                return
            except ObjectPushError:
                if attempt == ATTEMPTS - 1:
                    raise
                self._pause(2.0**attempt)

    def _content(self, name: str) -> bytes:
        # Empty while the worker has not handed it to the node yet.
        while (content := self._store.get(name)) == b"":
            self._pause(0.5)
        if content is None:
            raise ObjectPushError(name, 0, "")
        return content


def push_whole(*, state: Any, object_store: ObjectStore, send: Any, push_object: Any) -> None:
    """Send the answers that wait in the node, as Flower's node does, but whole."""
    delivery = Delivery(send, push_object, object_store)
    _push_messages(state=state, object_store=object_store, send=delivery.send, push_object=delivery.push)
