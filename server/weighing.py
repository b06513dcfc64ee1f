"""Weigh an answer while Flower fetches it: one that is too heavy is let go of before it fills the memory.

Flower fetches all objects of an answer and then puts them together. What comes first, the tree of objects, tells their
number and no size, so sizes are counted as the objects come. Putting them together can make more of them than came:
an array may name one piece of 5 MB a thousand times.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flwr.app import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

from popmi_core.errors import SetupError

MOST_OBJECTS = 20_000
"""Objects of one answer: a model of 5,000 tensors and its control variate, sent one by one, have as many."""
PLAIN_BYTES = 4_000_000
"""Bytes of an answer that are no tensors: report, figures, and what says how tensors belong together."""
_TOO_HEAVY = "too heavy for an answer to this question"
_most: ContextVar[float] = ContextVar("most_bytes", default=math.inf)
Fetch = Callable[[str], bytes]


@dataclass
class Room:
    """How many bytes an answer to one question may weigh: told by who reads them, for who fetches them."""

    most_bytes: float = math.inf


@contextmanager
def at_most(most_bytes: float) -> Iterator[None]:
    """Have answers that are fetched inside, over the network, refused as soon as they weigh more than this."""
    before = _most.set(most_bytes)
    try:
        yield
    finally:
        _most.reset(before)


def weigh_first() -> None:
    """Have Flower's grid weigh what it fetches; doing it again changes nothing.

    Raises:
        SetupError: If this version of Flower fetches elsewhere.
    """
    # Not loaded where nothing goes over a network. Its own name for the function is what counts, and is not public.
    from flwr.superlink.grid import http_grid

    names = vars(http_grid)
    pull = names.get("pull_objects")
    if pull is None:
        raise SetupError("this version of Flower has no pull_objects, expected flwr 1.41. Install popmi[server].")
    if not hasattr(pull, "__wrapped__"):
        names["pull_objects"] = _weighing(pull)


def refusal(reason: str) -> str:
    """Return why an answer was let go of, from the reason of Flower's error; empty where it was not for its weight."""
    _, found, rest = reason.partition(_TOO_HEAVY)
    return f"it is {found}{rest}" if found else ""


def _weighing(pull: Callable[..., dict[str, bytes]]) -> Callable[..., dict[str, bytes]]:
    @functools.wraps(pull)
    def pulled(object_ids: Sequence[str], pull_object_fn: Fetch, **words: Any) -> dict[str, bytes]:
        # One piece in two places, such as one of zeros, comes once.
        wanted = list(dict.fromkeys(object_ids))
        if len(wanted) > MOST_OBJECTS:
            raise _refused(wanted[-1], f"{len(wanted)} objects, expected at most {MOST_OBJECTS}")
        scales = _Scales(_most.get())
        contents = pull(object_ids=wanted, pull_object_fn=scales.weighed(pull_object_fn), **words)
        if (size := unfolded_bytes(contents)) > scales.most:
            raise _refused(wanted[-1], f"{size} bytes once put together, expected at most {scales.most:.0f}")
        return contents

    return pulled


class _Scales:
    """What one answer weighs so far; several threads fetch its objects."""

    def __init__(self, most: float) -> None:
        self.most, self._total, self._plain, self._lock = most, 0, 0, threading.Lock()

    def weighed(self, fetch: Fetch) -> Fetch:
        def fetched(object_id: str) -> bytes:
            content = fetch(object_id)
            with self._lock:
                self._total += len(content)
                self._plain += 0 if _is(content, ArrayChunk) else len(content)
                total, plain = self._total, self._plain
            if plain > PLAIN_BYTES:
                raise _refused(object_id, f"{plain} bytes beside its tensors, expected at most {PLAIN_BYTES}")
            if total > self.most:
                raise _refused(object_id, f"{total} bytes and more, expected at most {self.most:.0f}")
            return content

        return fetched


def unfolded_bytes(contents: Mapping[str, bytes]) -> int:
    """Return the bytes of all arrays among these objects once their pieces are put together."""
    return sum(_array_bytes(content, contents) for content in contents.values() if _is(content, Array))


def _array_bytes(content: bytes, contents: Mapping[str, bytes]) -> int:
    try:
        pieces = get_object_children_ids_from_object_content(content)
        sizes = [len(contents[piece]) for piece in pieces]
        return sum(sizes[index] for index in json.loads(get_object_body(content, Array))["arraychunk_ids"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        # Not an array at all: Flower, which puts it together next, stumbles over it and the site is put aside.
        return 0


def _is(content: bytes, kind: type) -> bool:
    return content.startswith(f"{kind.__qualname__} ".encode())


def _refused(object_id: str, why: str) -> ObjectPullError:
    return ObjectPullError(object_id, f"{_TOO_HEAVY}: {why}. Look who wrote the site's node")
