"""Keys that the fleet refused: the gateway counts them into a file, the keeper writes them into the audit log.

The gateway has no access to the log, and must have none: it is the one that strangers reach. So it leaves two numbers
in a file, and the keeper, which trusts nothing else of it, turns what they grew by into one line a minute at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from popmi_core.audit import AuditLog
from popmi_core.errors import AuditError
from server.control.home import ServerHome

log = logging.getLogger("popmi.gateway")
EVENT = "fleet.refused"
WRITE_SECONDS = 2.0
"""Seconds that refusals are gathered before the file is written."""
NOTE_SECONDS = 60.0
"""Seconds between two lines of the audit log."""
LARGEST = 4096
"""Bytes of the file that are read."""
Status = Literal["401", "403"]


class Told(BaseModel):
    """The file: HTTP statuses of refused keys and how often each was answered since the gateway was started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    begun: float
    statuses: dict[Status, NonNegativeInt]


class Tally:
    """The gateway's side: counts refused keys. Written from within an event loop.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.time()
        self.statuses: dict[Status, int] = {"401": 0, "403": 0}
        self._soon: asyncio.TimerHandle | None = None

    def add(self, status: int) -> None:
        """Count an answer, if it is a refusal of a key."""
        if status not in (401, 403):
            return
        self.statuses["401" if status == 401 else "403"] += 1
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)

    def write(self) -> None:
        """Write the file in one step; one that cannot be written is told and tried again with the next refusal."""
        self._soon = None
        half = self.path.with_suffix(".part")
        try:
            half.write_text(Told(begun=self.begun, statuses=self.statuses).model_dump_json(), encoding="ascii")
            half.replace(self.path)
        except OSError as error:
            log.warning("what was refused cannot be counted in %s: %s", self.path, error.strerror)


class RefusalWatch:
    """The keeper's side.

    Args:
        home: The server's home.
        path: The file that the gateway writes.
        clock: Seconds since 1970 UTC.
    """

    def __init__(self, home: ServerHome, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.home, self.path, self._clock = home, path, clock
        self._noted: Told | None = None
        self._remembers, self._last = False, 0.0

    def look(self) -> None:
        """Write down what was refused since the last line, if anything was and a minute is over.

        Raises:
            AuditError: If the log cannot be written.
        """
        told = _read(self.path)
        if told is None or self._clock() - self._last < NOTE_SECONDS:
            return
        if not self._remembers:
            self._noted, self._remembers = self._last_noted(), True
        # Another start of the gateway counts from nought.
        before = self._noted.statuses if self._noted is not None and self._noted.begun == told.begun else {}
        grown = {status: count - before.get(status, 0) for status, count in told.statuses.items()}
        grown = {status: count for status, count in grown.items() if count > 0}
        if not grown:
            return
        self.home.note(EVENT, statuses=grown, total=told.statuses, gateway_begun=told.begun)
        self._noted, self._last = told, self._clock()

    def _last_noted(self) -> Told | None:
        """Return what the last line of an earlier keeper counted; a damaged log is for `audit verify` to tell."""
        found = None
        try:
            for line in AuditLog(self.home.audit_file).entries():
                if line.event == EVENT:
                    found = Told(begun=line.details["gateway_begun"], statuses=line.details["total"])
        except (AuditError, KeyError, ValidationError):
            return found
        return found


def _read(path: Path) -> Told | None:
    """Return what the gateway counted, None where it told nothing that can be read."""
    try:
        # Whoever took the gateway over must not hold the keeper up with a pipe, or have it follow a link.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return Told.model_validate_json(file.read(LARGEST))
    except (OSError, ValidationError):
        return None
