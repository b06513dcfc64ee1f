"""Flower's SuperLink, patient with its own database and sparing with it.

Flower waits 5 s for SQLite's one write lock, then answers "500: database is locked", upon which its runner ends and
sites' answers are lost. On a busy disk, writes of a few megabytes for each site take longer than that. Waiting costs
nothing: the request's own time limit is what counts.

And every site that only looks for a question takes that lock: Flower looks by an UPDATE, opens a new connection for
each request beyond fifteen at a time, and clears up lapsed tasks at every word of a task. With a hundred sites that is
most of the SuperLink's time. Here a look that finds nothing is a read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.cli import flower_superlink
from sqlalchemy import select

from popmi_core.errors import SetupError
from server.control.redelivery import hand_over_again
from server.control.straight import go_straight
from server.control.whole import hand_out_whole

WAIT_MILLISECONDS = 60_000
CONNECTIONS = 40
"""Connections to the database that stay open: as many as the SuperLink answers requests at once."""
CLEAR_UP_SECONDS = 1.0
"""How often lapsed tasks are looked for; Flower gives a task 30 s or more."""


def wait_longer() -> None:
    """Have every connection to the SuperLink's database wait for its lock up to ``WAIT_MILLISECONDS``.

    Raises:
        SetupError: If this version of Flower sets it elsewhere.
    """
    # Its module's own name for them is what counts, and is not public.
    names = vars(sql_mixin)
    pragmas = dict(names.get("SQLITE_PRAGMAS", ()))
    if "busy_timeout" not in pragmas:
        raise SetupError("this version of Flower sets no busy_timeout, expected flwr 1.41. Install popmi[server].")
    names["SQLITE_PRAGMAS"] = tuple((pragmas | {"busy_timeout": str(WAIT_MILLISECONDS)}).items())


def spare_the_database(clock: Callable[[], float] = time.monotonic) -> None:
    """Have looks that find nothing read only, connections stay open, and lapsed tasks be looked for once a second.

    Raises:
        SetupError: If this version of Flower does these things elsewhere.
    """
    missing = [
        name
        for owner, name in (
            (SqlLinkState, "_claim_message_ins_rows"),
            (SqlCoreState, "_cleanup_expired_task_tokens"),
            (sql_mixin, "create_engine"),
        )
        if not hasattr(owner, name)
    ]
    if missing:
        raise SetupError(
            f"this version of Flower has no {', '.join(missing)}, expected flwr 1.41. Install popmi[server]."
        )
    names = vars(sql_mixin)
    names["create_engine"] = partial(_with_room, names["create_engine"])
    claim, clear_up = SqlLinkState._claim_message_ins_rows, SqlCoreState._cleanup_expired_task_tokens
    setattr(SqlLinkState, "_claim_message_ins_rows", _reading_first(claim))  # noqa: B010
    setattr(SqlCoreState, "_cleanup_expired_task_tokens", _seldom(clear_up, clock))  # noqa: B010


def _with_room(create: Callable[..., Any], address: str, **words: Any) -> Any:
    # A database in memory has one connection, and a pool of its own.
    return create(address, **({"pool_size": CONNECTIONS} if "poolclass" not in words else {}), **words)


def _reading_first(claim: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
    """Return ``claim``, called only where a message for the node waits."""

    def claimed(
        state: SqlLinkState, node_id: int, limit: int | None, run_id: int | None = None
    ) -> list[dict[str, Any]]:
        waits = select(MessageIns.message_id).where(
            MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at == ""
        )
        with state.session() as session:
            if session.scalar(waits.limit(1)) is None:
                return []
            return claim(state, node_id, limit, run_id)

    return claimed


def _seldom(clear_up: Callable[[Any], None], clock: Callable[[], float]) -> Callable[[Any], None]:
    """Return ``clear_up``, done at most once in ``CLEAR_UP_SECONDS`` for each database."""
    done: dict[int, float] = {}

    def cleared_up(state: Any) -> None:
        now = clock()
        if now - done.get(id(state), -CLEAR_UP_SECONDS) >= CLEAR_UP_SECONDS:
            done[id(state)] = now
            clear_up(state)

    return cleared_up


def main() -> None:
    """Be the SuperLink; the arguments are ``flower-superlink``'s."""
    wait_longer()
    hand_over_again()
    hand_out_whole()
    spare_the_database()
    go_straight()
    flower_superlink()


if __name__ == "__main__":
    main()
