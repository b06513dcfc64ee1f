"""Hand a question that got lost on its way to a node to it again.

Flower 1.41's SuperLink marks a question as delivered when it answers the node's look. If the gateway is killed, or the
line is cut, just then, the node never sees it and looks again for ever; the round waits for a site that was asked
nothing, and the site counts as late until the question expires. But a node does one thing after another: while it
looks, it holds no question. So one that was delivered, that nobody has answered and whose receipt the node has not
confirmed, was lost. It is given to the next look. The SuperLink keeps a question's objects until the confirmation, so
that they tell.
"""

from __future__ import annotations

import logging
from typing import Any

from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import exists, select, update

from popmi_core.errors import SetupError

log = logging.getLogger("popmi.superlink")


def hand_over_again() -> None:
    """Have every look of a node find what was lost on its way to it.

    Raises:
        SetupError: If this version of Flower answers looks elsewhere.
    """
    flowers = getattr(fleet_handlers, "pull_messages", None)
    if flowers is None:
        raise SetupError("this version of Flower has no pull_messages, expected flwr 1.41. Install popmi[server].")

    def pull_messages(*, request: Any, state: Any, store: Any) -> PullMessagesResponse:
        if isinstance(state, SqlLinkState):
            give_back(state, store, request.node.node_id)
        found: PullMessagesResponse = flowers(request=request, state=state, store=store)
        return found

    setattr(fleet_handlers, "pull_messages", pull_messages)  # noqa: B010


def give_back(state: SqlLinkState, store: ObjectStore, node_id: int) -> list[str]:
    """Mark a node's questions that never reached it as not delivered; return their names. Reads only, mostly."""
    answered = exists().where(MessageRes.reply_to_message_id == MessageIns.message_id)
    handed = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at != "", ~answered
    )
    with state.session() as session:
        lost = [str(name) for name in session.scalars(handed) if _is_kept(store, str(name))]
        if lost:
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(lost)).values(delivered_at=""))
    for name in lost:
        log.warning("question %s was lost on its way to node %d and is handed over again", name[:12], node_id)
    return lost


def _is_kept(store: ObjectStore, name: str) -> bool:
    try:
        store.get_object_tree(name)
    except NoObjectInStoreError:
        return False
    return True
