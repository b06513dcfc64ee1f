"""Lines of the audit log that strangers cause: so many an hour, and a count of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from server.control.home import ServerHome

LINES = 30
WINDOW = 3600.0
"""Seconds within which at most ``LINES`` lines are written."""


class BoundedNotes:
    """Writes events down until there are too many; who sends many files must not fill the log, nor hide in it.

    Args:
        home: The server's home.
        event: Name of the event that counts what was left out.
        lines: Lines within a window.
        clock: Seconds since 1970 UTC.
    """

    def __init__(
        self, home: ServerHome, event: str, *, lines: int = LINES, clock: Callable[[], float] = time.time
    ) -> None:
        self._home, self._event, self._lines, self._clock = home, event, lines, clock
        self._begun, self._written, self._left_out = 0.0, 0, 0

    def note(self, event: str, **details: Any) -> None:
        """Write one line, or count it.

        Raises:
            AuditError: If the log cannot be written.
        """
        self.settle()
        if self._written >= self._lines:
            self._left_out += 1
            return
        self._home.note(event, **details)
        self._written += 1

    def settle(self) -> None:
        """Begin a new window once the last one is over, and write down how many lines it lacks.

        Raises:
            AuditError: If the log cannot be written.
        """
        now = self._clock()
        if now - self._begun < WINDOW:
            return
        if self._left_out:
            self._home.note(self._event, left_out=self._left_out, since=self._begun)
        self._begun, self._written, self._left_out = now, 0, 0
