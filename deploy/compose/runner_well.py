"""Health of the runner's container: Flower's runner is there, and is not just being started over and over.

    python runner_well.py [SECONDS]

ends with 0 if a `server.control.runner` has lived for SECONDS (10), else says what is wrong and ends with 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = b"server.control.runner"


def age(process: Path, now: float) -> float:
    """Return the seconds a process has lived; ``now`` is in seconds since the machine started."""
    # The name stands in brackets and may hold blanks: fields are counted after it. The 22nd is the start, in ticks.
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return now - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def oldest(proc: Path) -> float | None:
    """Return the age in seconds of the runner that has lived longest; None where there is none."""
    now, found = float((proc / "uptime").read_text().split()[0]), []
    for process in proc.glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[1:3] == [b"-m", NAME]:
                found.append(age(process, now))
        except OSError:
            # It ended while it was looked at.
            continue
    return max(found, default=None)


def main() -> None:
    """Say what is wrong and end accordingly."""
    wanted = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    found = oldest(Path("/proc"))
    if found is None:
        sys.exit("the runner does not run")
    if found < wanted:
        sys.exit(f"the runner was started {found:.0f} s ago: it ends again and again, or has only begun")


if __name__ == "__main__":
    main()
