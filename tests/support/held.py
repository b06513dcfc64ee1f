"""What still holds the records of a message's content once they are wanted no more."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, ConfigRecord, RecordDict


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Let only that go which nobody refers to; what refers to itself stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Watched:
    """The records of a content, watched without being held."""

    def __init__(self, content: RecordDict) -> None:
        self._refs: dict[str, weakref.ref[object]] = {
            name: weakref.ref(record)
            for name, record in content.items()
            if isinstance(record, ArrayRecord | ConfigRecord)
        }
        assert self._refs

    def held(self) -> list[str]:
        """Return the names of the records that are still there."""
        return [name for name, ref in self._refs.items() if ref() is not None]
