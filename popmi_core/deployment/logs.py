"""Logs that stay small: a log that grew too long becomes the old one, and begins anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LOG_BYTES = 10_000_000
"""Size at which a log is put aside; with the one old file kept, a process fills twice that."""


def put_aside(path: Path, *, limit: int = LOG_BYTES) -> bool:
    """Copy a log of ``limit`` bytes or more over ``<name>.1`` and empty it; return whether it was.

    Its writer keeps the file open and must append to it (``O_APPEND``), so that it goes on at the new end. What is
    written between the copy and the emptying, a matter of milliseconds, is lost. After a crash between the two the log
    is still whole.

    Raises:
        OSError: If the copy cannot be written; the log is untouched then.
    """
    try:
        if path.stat().st_size < limit:
            return False
    except FileNotFoundError:
        return False
    old = path.with_name(f"{path.name}.1")
    # Over the older one, not beside it: on a nearly full disk there is no room for three. With the log's own mode:
    # what others may not read in the one, they may not in the other.
    old.touch(mode=0o600)
    shutil.copy(path, old)
    os.truncate(path, 0)
    return True
