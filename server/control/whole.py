"""Hand an answer to the server app once it is whole.

Flower 1.41's SuperLink hands out a reply as soon as it is announced, and forgets question and reply; the server app
then waits for the objects. If the gateway is killed between the announcement and the last object, the node announces
anew, is told that the question is not known any more and that nothing lacks, and sends no object: the server app waits
for them, and with it the round.

Here a reply is not seen before all of its objects are there. A node that announces anew is told what still lacks; one
that is gone counts as gone by its missing heartbeats.
"""

from __future__ import annotations

from flwr.app import Message
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from sqlalchemy import literal, select

from popmi_core.errors import SetupError


def hand_out_whole() -> None:
    """Have the server app be given whole answers only.

    Raises:
        SetupError: If this version of Flower keeps answers elsewhere.
    """
    flowers = vars(SqlLinkState).get("get_message_res")
    if flowers is None:
        raise SetupError("this version of Flower has no get_message_res, expected flwr 1.41. Install popmi[server].")

    def get_message_res(self: SqlLinkState, message_ids: set[str], run_id: int) -> list[Message]:
        found: list[Message] = flowers(self, message_ids=message_ids - unfinished(self, message_ids), run_id=run_id)
        return found

    setattr(SqlLinkState, "get_message_res", get_message_res)  # noqa: B010


def unfinished(state: SqlLinkState, questions: set[str]) -> set[str]:
    """Return the questions whose answer is announced and lacks objects; without a stored object store, none."""
    store = state.object_store
    if not questions or not isinstance(store, SqlObjectStore):
        return set()
    announced = select(MessageRes.reply_to_message_id, MessageRes.message_id).where(
        MessageRes.reply_to_message_id.in_(questions), MessageRes.delivered_at == ""
    )
    with state.session() as session:
        answers = {str(question): str(answer) for question, answer in session.execute(announced)}
    return {question for question, answer in answers.items() if lacks(store, answer)}


def lacks(store: SqlObjectStore, answer: str) -> bool:
    """Return whether an object of an answer has not come yet."""
    parts = select(literal(answer).label("name")).cte(recursive=True)
    parts = parts.union(select(ObjectChild.child_id).join(parts, ObjectChild.parent_id == parts.c.name))
    missing = (
        select(StoredObject.object_id)
        .join(parts, StoredObject.object_id == parts.c.name)
        .where(StoredObject.is_available == 0)
    )
    with store.session() as session:
        return session.scalar(missing.limit(1)) is not None
