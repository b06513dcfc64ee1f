"""How far sites' clocks are off: measured at the gateway from the times that nodes sign, read by the keeper.

As with what is refused (`tally.py`), the gateway leaves numbers in a file and the keeper trusts nothing else of it.
Only what the SuperLink took counts, whose signature it has verified: a clock more than five minutes behind or five
seconds ahead is refused, and such a site is not on line at all. The time a request is on its way counts as lag.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

log = logging.getLogger("popmi.gateway")
CLOCKS_FILE = "clocks.json"
WRITE_SECONDS = 30.0
"""Seconds that measurements are gathered before the file is written."""
MOST_KEYS = 1000
"""Keys that are remembered; the one heard of longest ago is forgotten first."""
LARGEST = 200_000
"""Bytes of the file that are read."""
Fingerprint = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]


class Clock(BaseModel):
    """A site's clock minus the server's in seconds, and when that was measured (seconds since 1970 UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    skew: float
    time: float


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    clocks: dict[Fingerprint, Clock] = Field(max_length=MOST_KEYS)


class Clocks:
    """The gateway's side. Written from within an event loop.

    Args:
        path: The file.
        clock: Seconds since 1970 UTC.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._clocks: dict[str, Clock] = {}
        self._soon: asyncio.TimerHandle | None = None

    def heard(self, key: str, signed: str) -> None:
        """Take the time that a key (its fingerprint) has just signed, in ISO 8601; what is no time is left out."""
        try:
            moment = datetime.datetime.fromisoformat(signed)
        except ValueError:
            return
        if moment.tzinfo is None:
            return
        now = self._clock()
        self._clocks.pop(key, None)
        self._clocks[key] = Clock(skew=round(moment.timestamp() - now, 3), time=round(now, 3))
        if len(self._clocks) > MOST_KEYS:
            del self._clocks[next(iter(self._clocks))]
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)

    def write(self) -> None:
        """Write the file in one step; one that cannot be written is told and tried again later."""
        self._soon = None
        half = self.path.with_suffix(".part")
        try:
            half.write_text(_Told(clocks=self._clocks).model_dump_json(), encoding="ascii")
            half.replace(self.path)
        except OSError as error:
            log.warning("clocks cannot be told in %s: %s", self.path, error.strerror)


def read_clocks(path: Path) -> dict[str, Clock]:
    """Return what the gateway measured, by the keys' fingerprints; nothing where it told nothing that can be read."""
    try:
        # As in `tally`: no pipe holds the reader up, no link leads it elsewhere.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return {}
            return _Told.model_validate_json(file.read(LARGEST)).clocks
    except (OSError, ValidationError):
        return {}
