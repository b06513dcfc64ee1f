"""Rendered parts kept for all viewers: made once, however many ask at the same moment."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

MOST_BYTES = 48_000_000
LARGE = 100_000
"""Bytes from which a part is packed by who makes it: packing takes long, and many wait."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer; ``digest`` tells it from others, ``packed`` is it gzipped, made when first asked for."""

    text: str
    data: bytes = field(repr=False)
    digest: str

    @cached_property
    def packed(self) -> bytes:
        """The bytes, gzipped quickly: a new round makes new ones."""
        return gzip.compress(self.data, compresslevel=4, mtime=0)


def part(text: str, digest: str | None = None) -> Part:
    """Return a part of this text; ``digest`` None: that of the text."""
    data = text.encode("utf-8", "replace")
    return Part(text, data, digest or hashlib.sha256(data).hexdigest()[:12])


class Kept:
    """Parts by what they were made of, the least recently asked for let go of first.

    Args:
        most_bytes: Bytes of text to keep.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._parts: OrderedDict[Hashable, Part] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], str], digest: Callable[[], str] | None = None) -> Part:
        """Return the part of this key; ``make`` is called if it is not kept, once for all who wait.

        ``digest`` gives the part another digest than its text's: one that stays while only a part of the text changes.
        """
        with self._lock:
            if (found := self._find(key)) is not None:
                return found
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if (found := self._find(key)) is not None:
                    return found
            try:
                made = part(make(), digest() if digest is not None else None)
                _ = made.packed if len(made.data) >= LARGE else None
                self._keep(key, made)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return made

    def _find(self, key: Hashable) -> Part | None:
        found = self._parts.get(key)
        if found is not None:
            self._parts.move_to_end(key)
        return found

    def _keep(self, key: Hashable, made: Part) -> None:
        with self._lock:
            self._parts[key] = made
            self.nbytes += len(made.data)
            while self.nbytes > self._most and len(self._parts) > 1:
                _, gone = self._parts.popitem(last=False)
                self.nbytes -= len(gone.data)
