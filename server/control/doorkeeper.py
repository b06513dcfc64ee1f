"""Lets in who lies in a folder, compared by nobody: for simulations on one machine, where no operator confirms."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from popmi_core.errors import SetupError
from server.control.bounded import BoundedNotes
from server.control.contract import Control, SuperLinkAway
from server.control.home import LONGEST_REASON, ServerHome
from server.control.sites import NotLetIn, confirm

log = logging.getLogger("popmi.keeper")
BY_ITSELF = "by the keeper itself, nobody compared the fingerprint (--confirm-from, for simulations on one machine)"
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds until an enrolment that could not be let in now is tried again; doubled each time."""


@dataclass
class _Tried:
    """What became of one file as it was at one time; ``again`` is when it is tried anew, None: never."""

    changed: float
    again: float | None = None
    pause: float = FIRST_PAUSE
    reason: str = ""


class Doorkeeper:
    """Confirms every enrolment in a folder or below it.

    A file that is let in, or never will be, is left alone until it changes; any other is tried again.

    Args:
        home: The server's home.
        control: The SuperLink.
        folder: Where enrolments appear.
        clock: Seconds since 1970 UTC.
    """

    def __init__(
        self, home: ServerHome, control: Control, folder: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.home, self.control, self.folder, self._clock = home, control, folder, clock
        self._notes = BoundedNotes(home, "site.refused_more", clock=clock)
        self._tried: dict[Path, _Tried] = {}

    def look(self) -> None:
        """Try every enrolment whose time has come.

        Raises:
            SuperLinkAway: If the SuperLink does not answer.
            AuditError: If the log cannot be written.
        """
        self._notes.settle()
        files = sorted(self.folder.rglob("*.json"))
        self._tried = {file: tried for file, tried in self._tried.items() if file in set(files)}
        for file in files:
            try:
                changed = file.stat().st_mtime
            except OSError:
                continue
            tried = self._tried.get(file)
            if tried is None or tried.changed != changed:
                tried = _Tried(changed)
            elif tried.again is None or self._clock() < tried.again:
                continue
            self._try(file, tried)
            self._tried[file] = tried

    def _try(self, file: Path, tried: _Tried) -> None:
        try:
            confirm(self.home, self.control, file, agreed=lambda _: True, how=BY_ITSELF, refused=self._notes.note)
        except SuperLinkAway:
            raise
        except NotLetIn as error:
            log.warning("%s", error)
        except SetupError as error:
            # Not invited yet, a SuperLink that is too busy, a registry without room: all of them pass.
            if str(error) != tried.reason:
                log.warning("%s", error)
                self._notes.note("site.not_confirmed", file=file.name, reason=str(error)[:LONGEST_REASON])
            tried.reason = str(error)
            tried.again, tried.pause = self._clock() + tried.pause, min(2 * tried.pause, LONGEST_PAUSE)
            return
        tried.again = None
