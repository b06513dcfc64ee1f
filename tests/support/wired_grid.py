"""A scripted grid whose answers come through Flower's own network grid: objects, heads, bodies, and their decoding."""

from __future__ import annotations

from types import SimpleNamespace

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.superlink.grid.http_grid import HttpGrid
from scripted_grid import ScriptedGrid


class Link:
    """What the SuperLink's runtime answers: messages with their trees, and objects one by one."""

    def __init__(self, change) -> None:
        self.change, self.ready, self.objects = change, [], {}
        self.fetched: list[str] = []
        self.confirmed: list[str] = []

    def hold(self, message: Message) -> None:
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            contents = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
            tree = get_object_tree(message)
            proto = message_to_proto(remove_content_from_message(message))
        self.objects |= self.change(message, contents)
        self.ready.append((proto, tree))

    def PullMessages(self, request):
        del request
        ready, self.ready = self.ready, []
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in ready], message_object_trees=[tree for _, tree in ready]
        )

    def PullObject(self, request):
        self.fetched.append(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=self.objects[request.object_id]
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


class WiredGrid(ScriptedGrid):
    """``change(message, contents)`` returns what a site puts on the wire instead of a message's objects."""

    def __init__(self, clock, answer, nodes, change=lambda message, contents: contents) -> None:
        super().__init__(clock, answer, nodes)
        self.link = Link(change)
        self._http = HttpGrid(token="secret")
        self._http._client = self.link
        self._http._run = SimpleNamespace(run_id=1)

    def pull_messages(self, message_ids):
        for message in super().pull_messages(message_ids):
            self.link.hold(message)
        return self._http.pull_messages(message_ids)
