"""Flower's SuperNode, ended by the kernel when `popmi site run` ends, even by ``kill -9``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as internal
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.site.contact import MARK_VARIABLE, noting
from client.site.leash import die_with_supervisor
from client.site.retrying import ask_again
from client.site.sending import push_whole

_fetch = internal._pull_and_store_message
SOONEST, LATEST = 0.3, 3.0
"""Seconds between two looks for a question."""


def next_question(
    *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep, **given: Any
) -> int:
    """Return the run of the next question, once there is one.

    Flower's node looks every three seconds; between training and evaluation that is most of a small round. Here a
    question is noticed within a fifth of the time it was waited for.
    """
    begun = clock()
    while (run_id := fetch_whole(**given)) is None:
        pause(min(max((clock() - begun) / 5, SOONEST), LATEST))
    return run_id


def fetch_whole(**given: Any) -> int | None:
    """Fetch a question from the server, as Flower's node does; of one whose run ends meanwhile, nothing stays.

    Flower 1.41 keeps such a question and its task. The error that comes of them is sent in the place of the next
    answer, that answer in the place of the one after it, and so on: every answer comes one question late.
    """
    for name in ("pull_object", "confirm_message_received"):
        given[name] = _failing_plainly(given[name])
    return _fetch(**given)


def _failing_plainly(call: Callable[..., Any]) -> Callable[..., Any]:
    """Tell a run's end by an ordinary exception, after which Flower's node clears up."""

    def called(*words: Any) -> Any:
        try:
            return call(*words)
        except RunNotRunningException as error:
            raise RuntimeError("the run has ended") from error

    return called


def main() -> None:
    """Be the node; its arguments are ``flower-supernode``'s."""
    die_with_supervisor()
    internal._pull_and_store_message = next_question  # type: ignore[assignment]
    internal._push_messages = push_whole  # type: ignore[assignment]
    ask_again()
    if mark := os.environ.get(MARK_VARIABLE):
        FleetHttpClient._unary_unary = noting(FleetHttpClient._unary_unary, Path(mark))  # type: ignore[method-assign]
    flower_supernode()


if __name__ == "__main__":
    main()
