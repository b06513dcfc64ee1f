"""Wait for what passes: a disk without room, a record that is locked, a database that is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from popmi_core.errors import RecordError, RunError

log = logging.getLogger("popmi.round")
LOOK_AGAIN = 10.0
"""Seconds between two tries."""
Result = TypeVar("Result")


def wait_out(
    action: Callable[[], Result],
    patience: float,
    *,
    waits: Callable[[str, bool], None] = lambda why, first: None,
    waited: Callable[[float, str], None] = lambda seconds, why: None,
) -> Result:
    """Return what ``action`` returns; where it raises ``RunError``, try again for ``patience`` seconds.

    ``waits`` hears at every try why, and whether it is the first; ``waited`` for how many seconds that was and why,
    once it is over.

    Raises:
        RunError: If it could not be done in that time, or, without waiting, would be refused again.
    """
    begun, told = time.monotonic(), ""
    while True:
        try:
            result = action()
            break
        except RecordError:
            # It would be refused again.
            raise
        except RunError as error:
            if time.monotonic() - begun >= patience:
                raise
            if str(error) != told:
                log.warning("paused: %s", error)
            waits(str(error), not told)
            told = str(error)
            time.sleep(min(LOOK_AGAIN, patience))
    if told:
        waited(time.monotonic() - begun, told)
    return result
