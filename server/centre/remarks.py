"""What is done in the centre itself is told to the keeper, who alone writes the audit log, by a remark for it.

A remark stands among the orders in a state of its own, so no list of orders and no limit on them knows it; the keeper
takes it away once the line is written. A keeper that is ended between the two writes the line twice, never not at all.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre.opening import writing
from server.centre.people import Doer
from server.centre.reaching import reaching
from server.centre.schema import Order

REMARK = "remark"
"""Kind and state of such a row; its arguments are ``event`` and ``details``."""


@dataclass(frozen=True)
class Remark:
    """One line for the audit log: what happened, when (seconds since 1970 UTC), and who did it."""

    id: int
    event: str
    by: Doer
    time: float
    details: dict[str, Any]


def remark(session: Session, event: str, by: Doer, **details: str | float | None) -> None:
    """Have a line written into the audit log; it is one transaction with what it tells of."""
    told = {name: value for name, value in details.items() if value is not None}
    session.add(
        Order(
            kind=REMARK,
            arguments={"event": event, "details": told},
            who=by.who[:64],
            via=by.via[:20],
            created=time.time(),
            state=REMARK,
        )
    )


def unwritten(centre: Engine, limit: int = 200) -> tuple[Remark, ...]:
    """Return remarks that are not in the audit log yet, the oldest first.

    Raises:
        RunError: If the centre cannot be read now.
    """
    chosen = select(Order).where(Order.state == REMARK).order_by(Order.id).limit(limit)
    with reaching(centre, "read the remarks"), Session(centre) as session:
        return tuple(
            Remark(
                found.id,
                str(found.arguments.get("event", REMARK)),
                Doer(found.who, found.via),
                found.created,
                dict(found.arguments.get("details") or {}),
            )
            for found in session.scalars(chosen)
        )


def written(centre: Engine, ids: Collection[int]) -> None:
    """Take remarks away that are in the audit log.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(centre, "take the remarks away"), writing(centre) as session:
        session.execute(delete(Order).where(Order.state == REMARK, Order.id.in_(list(ids))))
