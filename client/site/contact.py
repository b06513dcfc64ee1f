"""Does the server answer this site's node? If not, why: for the audit log, the gate's log and `popmi site status`.

The node says by a file's time when the server last answered it. Only while it does not is the way looked at as the
doctor looks at it, so that a certificate that ran out, or a clock that drifted, is named where nobody runs the doctor.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from client.site.findings import Finding
from client.site.home import SiteHome
from popmi_core.errors import SetupError

log = logging.getLogger("popmi.gate")
HEARD = "heard"
"""File among the processes' that the node touches whenever the server has answered it."""
MARK_VARIABLE = "POPMI_SERVER_HEARD"
"""Tells the node where that file lies."""
UNHEARD = 120.0
"""Seconds without an answer after which the server counts as not reached; a node's heartbeat comes every 30."""
AGAIN = 300.0
"""Seconds between two looks at a way that does not work."""
REFUSED = (
    "the way is open, but the server refuses the node: its key is not confirmed yet, was revoked, or is in use on "
    "another machine, as the server takes one node a key. End the other one (a machine before this one, a restored "
    "copy, a second container); if nobody here runs it, the key was stolen: have the coordinating centre revoke it "
    "and enrol with --new-key. Else ask the centre; processes/node.log has the node's own words"
)
Check = Callable[[str, str, str | None, Callable[[], float]], Iterable[Finding]]


def noting(call: Callable[..., Any], mark: Path) -> Callable[..., Any]:
    """Return ``call`` such that ``mark`` is touched whenever it returns, which is when the server has answered."""

    @functools.wraps(call)
    def called(*words: Any, **named: Any) -> Any:
        answered = call(*words, **named)
        try:
            mark.touch()
        except OSError as error:
            log.debug("the server's answer could not be noted: %s", error.strerror)
        return answered

    return called


def heard_seconds_ago(home: SiteHome) -> float | None:
    """Return for how long the server has not answered the node; None if it never did."""
    try:
        return max(0.0, time.time() - (home.processes / HEARD).stat().st_mtime)
    except OSError:
        return None


class Contact:
    """Watches the way to the server, from a process that has nothing else to do.

    Args:
        home: The site.
        check: Looks at the way, as the doctor does; None takes the doctor's own.
        clock: Seconds since 1970.
    """

    def __init__(self, home: SiteHome, check: Check | None = None, clock: Callable[[], float] = time.time) -> None:
        self.home, self._check, self._clock = home, check, clock
        self._started = clock()
        self._due = 0.0
        # What stands in the audit log.
        self._told: dict[str, str] = {}

    def look(self) -> None:
        """Write down that the server is not reached and why, or that it is again; once, not at every look."""
        now = self._clock()
        quiet = heard_seconds_ago(self.home)
        if now - self._started < UNHEARD or (quiet is not None and quiet < UNHEARD):
            if self._told and quiet is not None and quiet < UNHEARD:
                self._told = {}
                self.home.note("server.reached")
            return
        if now < self._due:
            return
        self._due = now + AGAIN
        found = self._reasons()
        if found.keys() == self._told.keys():
            return
        for name, said in found.items():
            log.warning("the server is not reached: %s: %s", name, said)
        if self.home.note("server.unreachable", why=found):
            self._told = found

    def _reasons(self) -> dict[str, str]:
        from client.site.network import check_network

        try:
            config, ca = self.home.config(), self.home.ca.read_text(encoding="ascii")
            findings = list((self._check or check_network)(config.endpoint, ca, config.proxy, self._clock))
        except (OSError, ValueError, SetupError) as error:
            return {"site folder": f"{error}. Run `popmi site doctor`."}
        return {item.name: f"{item.found} -> {item.remedy}" for item in findings if item.state == "failed"} or {
            "node": REFUSED
        }
