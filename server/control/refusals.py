"""Count what was refused by address, so that one who guesses is soon not even listened to."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

REFUSED_PER_MINUTE = 60
WINDOW = 60.0
KNOWN_FOR = 600.0
"""Seconds for which a key that was let in from an address is listened to there, whatever else comes from it."""
REMEMBERED = 10_000
"""Addresses, and keys, remembered at most; the oldest are forgotten first."""


class Refusals:
    """Refused requests by address within a minute.

    Several hospitals may share one address, and one of them may be the one that is refused: a key that was let in a
    short while ago from the same address is always listened to. That opens nothing, its signature is checked again.

    Args:
        limit: Refused requests a minute after which an address is not listened to.
        clock: Seconds that never go back.
    """

    def __init__(self, limit: int = REFUSED_PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._clock = limit, clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def blocked(self, address: str, key: str = "") -> bool:
        """Return whether this address is not listened to now; ``key`` is the public key it names, if any."""
        begun, count = self._counts.get(address, (0.0, 0))
        if count < self.limit or self._clock() - begun >= WINDOW:
            return False
        known = self._known.get((address, key))
        return known is None or self._clock() - known >= KNOWN_FOR

    def refused(self, address: str) -> None:
        """Count one refused request."""
        begun, count = self._counts.pop(address, (self._clock(), 0))
        if self._clock() - begun >= WINDOW:
            begun, count = self._clock(), 0
        self._counts[address] = (begun, count + 1)
        while len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)

    def let_in(self, address: str, key: str) -> None:
        """Remember that a key was let in from an address."""
        self._known.pop((address, key), None)
        self._known[address, key] = self._clock()
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
