"""Orders: the pages write what a person wants done, the keeper does it once and answers.

An order is *waiting* until it is *done* or *refused*. The keeper takes the oldest first, and the row says when
(``decided`` while it is waiting): a keeper that finds an order taken knows that one before it was ended at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from popmi_core.errors import RunError
from server.centre.kinds import parse_order
from server.centre.opening import writing
from server.centre.people import Doer
from server.centre.reaching import reaching
from server.centre.remarks import REMARK, remark
from server.centre.schema import Order

MOST_WAITING = 50
"""Orders that may wait at once: more are refused until the keeper has answered some."""
LONGEST_ANSWER = 10_000
"""Letters of an answer that are kept."""
State = Literal["waiting", "done", "refused"]


@dataclass(frozen=True)
class OrderRow:
    """One order.

    Attributes:
        id: Its number; grows.
        kind: What is to be done, see ``server.centre.kinds``.
        arguments: With what, as JSON.
        who: The account that gave it.
        via: ``page`` or ``api``.
        created: When it was given, seconds since 1970 UTC.
        state: Whether it waits, is done or was refused.
        answer: What the keeper says of it; None while it waits.
        decided: When the keeper answered it, or, while it waits, took it up; None before that.
    """

    id: int
    kind: str
    arguments: dict[str, Any]
    who: str
    via: str
    created: float
    state: State
    answer: str | None
    decided: float | None

    @property
    def about(self) -> str:
        """The run or site it is about, empty where there is none."""
        told = self.arguments
        return str(told.get("run") or told.get("site") or told.get("name") or "")


def place(
    engine: Engine,
    kind: str,
    arguments: Mapping[str, Any],
    *,
    who: str,
    via: str,
    clock: Callable[[], float] = time.time,
) -> int:
    """Give an order and return its number.

    Raises:
        ConfigError: If it is none, or its arguments are unusable.
        RunError: If too many wait already, or the centre cannot be written now.
    """
    told = parse_order(kind, dict(arguments)).model_dump(mode="json", exclude_none=True)
    with reaching(engine, "write an order"), writing(engine) as session:
        waiting = _waiting(session)
        if waiting >= MOST_WAITING:
            raise RunError(
                f"{waiting} orders wait already, at most {MOST_WAITING} may. Look whether the keeper is running: "
                "`popmi server status`."
            )
        made = Order(kind=kind, arguments=told, who=who, via=via, created=clock(), state="waiting")
        session.add(made)
        session.flush()
        return made.id


def take(
    engine: Engine, *, besides: Collection[int] = (), clock: Callable[[], float] = time.time
) -> tuple[OrderRow, bool] | None:
    """Return the oldest order that waits, and whether a keeper took it up before; None where none waits.

    ``besides`` those with these numbers, which are being seen to.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(engine, "read the orders"):
        # Mostly there is none: looked for without holding anybody up.
        waiting = (Order.state == "waiting") & Order.id.not_in(list(besides))
        with Session(engine) as session:
            if session.scalar(select(Order.id).where(waiting).limit(1)) is None:
                return None
        with writing(engine) as session:
            oldest = select(Order).where(waiting).order_by(Order.id).limit(1).with_for_update()
            found = session.scalars(oldest).first()
            if found is None:
                return None
            before = found.decided is not None
            found.decided = clock()
            return _row(found), before


def decide(
    engine: Engine,
    number: int,
    state: Literal["done", "refused"],
    answer: str,
    *,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Answer an order; return whether it was still waiting.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(engine, "answer an order"), writing(engine) as session:
        found = session.get(Order, number, with_for_update=True)
        if found is None or found.state != "waiting":
            return False
        found.state, found.answer, found.decided = state, answer.replace("\x00", "�")[:LONGEST_ANSWER], clock()
        return True


def withdraw(engine: Engine, number: int, by: Doer, *, clock: Callable[[], float] = time.time) -> bool:
    """Take an order back that no keeper has taken up; return whether that was so. The audit log is told of it.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(engine, "take an order back"), writing(engine) as session:
        found = session.get(Order, number, with_for_update=True) if number < 2**31 else None
        if found is None or found.state != "waiting" or found.decided is not None:
            return False
        found.state, found.answer, found.decided = "refused", f"withdrawn by {by.who}", clock()
        remark(session, "order.withdrawn", by, number=number, kind=found.kind, about=_row(found).about)
        return True


def find(engine: Engine, number: int) -> OrderRow | None:
    """Return one order, None where there is none of this number.

    Raises:
        RunError: If the centre cannot be read now.
    """
    with reaching(engine, "read an order"), Session(engine) as session:
        found = session.get(Order, number) if number < 2**31 else None
        return None if found is None or found.state == REMARK else _row(found)


def count_waiting(engine: Engine) -> int:
    """Return how many orders wait.

    Raises:
        RunError: If the centre cannot be read now.
    """
    with reaching(engine, "read the orders"), Session(engine) as session:
        return _waiting(session)


def history(
    engine: Engine, *, state: State | None = None, before: int | None = None, limit: int = 50
) -> tuple[OrderRow, ...]:
    """Return orders, newest first; ``before``: only those with a smaller number.

    Raises:
        RunError: If the centre cannot be read now.
    """
    wanted = select(Order).where(Order.state != REMARK).order_by(Order.id.desc()).limit(limit)
    if state is not None:
        wanted = wanted.where(Order.state == state)
    if before is not None:
        wanted = wanted.where(Order.id < min(before, 2**31 - 1))
    with reaching(engine, "read the orders"), Session(engine) as session:
        return tuple(_row(item) for item in session.scalars(wanted))


def _waiting(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Order).where(Order.state == "waiting")) or 0


def _row(order: Order) -> OrderRow:
    names = ("id", "kind", "arguments", "who", "via", "created", "state", "answer", "decided")
    return OrderRow(**{name: getattr(order, name) for name in names})
