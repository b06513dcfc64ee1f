"""The board: what the keeper last saw, by subject, for pages that see neither home nor SuperLink."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre.opening import writing
from server.centre.reaching import reaching
from server.centre.schema import Board

SUBJECTS = ("status", "sites", "models", "plan", "audit")
STALE = 60.0
"""Seconds after which what stands on the board is old: the keeper, or its centre, is away."""


@dataclass(frozen=True)
class Notice:
    """What stands under one subject, and when the keeper last saw it so (seconds since 1970 UTC)."""

    value: Any
    time: float

    def stale(self, now: float) -> bool:
        """Whether nobody has looked for a minute."""
        return now - self.time > STALE


def write_board(engine: Engine, key: str, value: Any, *, clock: Callable[[], float] = time.time) -> bool:
    """Put a subject's news on the board; return whether they differ from what stood there.

    What has not changed is not written again, only when it was seen.

    Raises:
        RunError: If the centre cannot be written now.
    """
    told = json.loads(json.dumps(value, default=str))
    with reaching(engine, f"write {key} on the board"), writing(engine) as session:
        there = session.get(Board, key)
        if there is None:
            session.add(Board(key=key, value=told, time=clock()))
            return True
        changed = bool(there.value != told)
        if changed:
            there.value = told
        there.time = clock()
        return changed


def read_board(engine: Engine, key: str) -> Notice | None:
    """Return what stands under a subject, None where the keeper never wrote it.

    Raises:
        RunError: If the centre cannot be read now.
    """
    with reaching(engine, f"read {key} on the board"), Session(engine) as session:
        found = session.execute(select(Board.value, Board.time).where(Board.key == key)).first()
        return None if found is None else Notice(found.value, found.time)


def touch_board(engine: Engine, key: str, *, clock: Callable[[], float] = time.time) -> None:
    """Say that what stands under a subject is still so.

    Raises:
        RunError: If the centre cannot be written now.
    """
    with reaching(engine, f"write {key} on the board"), writing(engine) as session:
        session.execute(update(Board).where(Board.key == key).values(time=clock()))


def card_key(sha256: str) -> str:
    """Return under which subject the card of a model stands; ``sha256`` (hex) is of its file.

    Each card for itself: those of a thousand rounds together would be read and written with every one of them.
    """
    return f"card:{sha256[:54]}"


def kit_key(site: str) -> str:
    """Return under which subject the kit of an invited site stands: its file's name, and its bytes as base64."""
    return f"kit:{hashlib.sha256(site.encode()).hexdigest()[:54]}"
