"""What is done in the centre itself is told to the keeper, who alone writes the audit log, by an order to remark it."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from server.centre.people import Doer
from server.centre.schema import Order

REMARK = "remark"
"""The kind of such an order; its arguments are ``event`` and ``details``, and lists of orders leave it out."""


def remark(session: Session, event: str, by: Doer, **details: str | float | None) -> None:
    """Have a line written into the audit log; it is one transaction with what it tells of."""
    session.add(
        Order(
            kind=REMARK,
            arguments={
                "event": event,
                "details": {name: value for name, value in details.items() if value is not None},
            },
            who=by.who[:64],
            via=by.via[:20],
            created=time.time(),
            state="waiting",
        )
    )
