"""A SuperLink's state in a file, with one question that waits for its node."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStore
from sqlalchemy import text

NODE, OTHER = 2**63 + 5, 6
"""Two nodes; a number of more than 63 bits is kept as a negative one."""


def link_state(path: Path, store: ObjectStore, *, question: str = "m") -> SqlLinkState:
    """Return a state with a question for ``NODE`` that was not delivered yet."""
    state = SqlLinkState(str(path), SimpleNamespace(), store)
    state.initialize()
    state._check_stored_messages = lambda ids: None  # type: ignore[method-assign]
    with state.session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        session.execute(
            text(
                "INSERT INTO message_ins (message_id, group_id, run_id, src_node_id, dst_node_id, reply_to_message_id,"
                " created_at, delivered_at, ttl, message_type)"
                " VALUES (:name, '1', 1, 1, :node, '', :now, '', 600, 'train')"
            ),
            {"name": question, "node": NODE - 2**64, "now": time.time()},
        )
    return state
