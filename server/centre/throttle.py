"""How fast passwords can be tried: a few freely, then after waits that double, by name and by address.

A try is written down before the password is looked at, so that a hundred tries at once, also at two processes, see one
another. What counts against a name lets a stranger keep its owner waiting, for a quarter of an hour at most; without
it, a thousand rented addresses could try the same name undisturbed.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre.accounts import typed
from server.centre.opening import writing
from server.centre.people import Doer
from server.centre.remarks import remark
from server.centre.schema import Attempt

WINDOW_SECONDS = 86_400.0
LONGEST_SECONDS = 900.0
FREE_BY_NAME, FREE_BY_ADDRESS = 5, 20
"""Many people of one hospital come from one address."""


@dataclass(frozen=True)
class Try:
    """One try that was written down; ``wait`` is how many seconds it comes too early, 0.0 if it may go on."""

    ids: tuple[int, ...]
    keys: tuple[str, ...]
    wait: float


def name_key(name: str) -> str:
    """Return the key of a name, whether or not anybody has it."""
    return f"name:{typed(name)}"[:200]


def address_key(address: str) -> str:
    """Return the key of an address; a network of 64 bits where it is IPv6, which one customer has whole."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"address:{address}"[:200]
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False).network_address
    return f"address:{found}"


def wait_after(tries: int, free: int) -> float:
    """Return the seconds to wait after so many failed tries: none, then 1, 2, 4 ... up to a quarter of an hour."""
    return 0.0 if tries < free else min(LONGEST_SECONDS, 2.0 ** min(tries - free, 30))


def begin(centre: Engine, keys: Sequence[str]) -> Try:
    """Write a try down and say whether it may go on; one that comes too early does not count."""
    now = time.time()
    with writing(centre) as session:
        session.execute(delete(Attempt).where(Attempt.time < now - WINDOW_SECONDS))
        made = [Attempt(key=key, time=now) for key in keys]
        session.add_all(made)
        session.flush()
        ids = tuple(item.id for item in made)
    # In a transaction of its own: of tries at one moment, each sees at least those that were written before it.
    with Session(centre) as session:
        wait = max(_wait(session, key, ids, now) for key in keys)
    if wait > 0:
        _forget(centre, ids)
    return Try(ids, tuple(keys), wait)


def succeeded(centre: Engine, tried: Try) -> None:
    """Forget the try, and every failed one of the same name: its owner was there."""
    _forget(centre, tried.ids)
    for key in tried.keys:
        if key.startswith("name:"):
            forgive(centre, key)


def failed(centre: Engine, tried: Try, address: str) -> None:
    """Leave the try standing; where waits begin, the audit log is told, once."""
    with writing(centre) as session:
        for key in tried.keys:
            free = FREE_BY_NAME if key.startswith("name:") else FREE_BY_ADDRESS
            tries = session.scalar(select(func.count()).select_from(Attempt).where(Attempt.key == key)) or 0
            if tries == free:
                who = Doer("stranger", "page")
                remark(session, "account.guessed", who, tried=key, address=address[:64], tries=tries)


def withdraw(centre: Engine, tried: Try) -> None:
    """Forget a try whose password was never looked at."""
    _forget(centre, tried.ids)


def forgive(centre: Engine, key: str) -> None:
    """Forget all failed tries of a key."""
    with writing(centre) as session:
        session.execute(delete(Attempt).where(Attempt.key == key))


def _wait(session: Session, key: str, mine: tuple[int, ...], now: float) -> float:
    others = select(func.count(), func.max(Attempt.time)).where(Attempt.key == key, Attempt.id.not_in(mine))
    tries, last = session.execute(others).one()
    free = FREE_BY_NAME if key.startswith("name:") else FREE_BY_ADDRESS
    return max(0.0, (last or 0.0) + wait_after(tries, free) - now)


def _forget(centre: Engine, ids: tuple[int, ...]) -> None:
    with writing(centre) as session:
        session.execute(delete(Attempt).where(Attempt.id.in_(ids)))
