"""What was read of a run, kept until the run changes: read once, however many ask at the same moment."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from server.store import RunSummary

Value = TypeVar("Value")
MOST_RUNS = 1000


class Remembered(Generic[Value]):
    """Values by run; one that is kept is of the revision that the run has now.

    Args:
        most: Runs to keep; the least recently asked for goes first.
    """

    def __init__(self, *, most: int = MOST_RUNS) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[tuple[int, float, int], Value]] = OrderedDict()
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, run: RunSummary, make: Callable[[], Value]) -> Value:
        """Return what ``make`` gave for this revision of the run of this key."""
        stamp = (run.id, run.created, run.revision)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                held = self._kept.get(key)
            if held is None or held[0] != stamp:
                held = (stamp, make())
            with self._lock:
                self._kept[key] = held
                self._kept.move_to_end(key)
                while len(self._kept) > self._most:
                    gone, _ = self._kept.popitem(last=False)
                    self._turns.pop(gone, None)
            return held[1]
