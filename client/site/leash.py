"""No orphans: a process that ends with the one that started it, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Get signal ``number`` from the kernel when process ``parent``, which started this one, ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        # It ended before the kernel was told.
        raise SystemExit(1)


def die_with_supervisor() -> None:
    """End when the supervisor that started this process ends; nothing happens without one."""
    told = os.environ.get("POPMI_PARENT", "")
    if told.isdigit():
        die_with(int(told), signal.SIGTERM)
