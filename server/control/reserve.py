"""Two megabytes that are kept back, so that a stolen key can be cut off on a disk that is full to its last byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

RESERVE_BYTES = 2_000_000
"""Enough for the registry, the SuperLink's state and the audit log to write what one revocation asks of them."""
PLENTY = 10 * RESERVE_BYTES
"""Bytes that must be free before any are kept back again."""


def keep_reserve(path: Path) -> None:
    """Keep the bytes back where there is plenty of room and none are kept yet.

    Raises:
        OSError: If the folder cannot be written.
    """
    if path.exists() or shutil.disk_usage(path.parent).free < PLENTY:
        return
    half = path.with_suffix(".part")
    try:
        with half.open("wb") as file:
            # Asked of the disk itself: a file of noughts alone may take no room at all.
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def use_reserve(path: Path) -> bool:
    """Give the bytes back where the disk is as good as full; return whether any were given."""
    try:
        if shutil.disk_usage(path.parent).free >= RESERVE_BYTES or not path.exists():
            return False
        path.unlink()
    except OSError:
        # A folder that nobody may write: what needs the room says so itself.
        return False
    return True
