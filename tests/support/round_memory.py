"""Measure what a round at the server takes at most in memory, by the number of its sites.

    python tests/support/round_memory.py CASE NUMBER NUMBER ...

Prints JSON: ``peaks`` (bytes by number of sites, all pages the process ever held at once) and ``model`` (bytes). Every
round is a process of its own, a copy of one that has imported everything, so that the peaks differ by the sites only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

from light_sites import light_plan, run_rounds

from popmi_core.models import build_model, exchanged_state
from server.store import RunReader
from server.store.schema import RECORD_NAME

MODEL = {"backbone": "vit_tiny_patch16_224", "image_size": 224}
CASES = {
    "average": ({}, False),
    "control variates": ({"local": {"objective": "control_variates"}}, False),
    "matched at the server": ({"strategy": "opm"}, True),
    "rule that matches": ({"fuse": {"rule": "opm"}}, True),
    "gate": ({"fuse": {"rule": "opm_soup", "gate": ["circuit"]}}, True),
    "median": ({"fuse": {"rule": "median"}}, False),
}


def peak(case: str, count: int) -> int:
    """Return the most bytes a process held while it ran a round of so many sites.

    Raises:
        RuntimeError: If the round gave no model.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as told:
            found = told.read()
        os.waitpid(child, 0)
        if not found:
            raise RuntimeError(f"the round of {count} sites gave no model ({case})")
        return int(found)
    try:
        parts, moved = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            run_rounds(light_plan(Path(folder), count, model=MODEL, **parts), moved=moved)
            most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with RunReader(Path(folder) / RECORD_NAME) as reader:
                done = [row.outcome for row in reader.rounds(1)] == ["ok"]
        os.write(write, str(most).encode() if done else b"")
    finally:
        os._exit(0)


def main() -> None:
    """Measure and print."""
    case, *counts = sys.argv[1:]
    parts, _ = CASES[case]
    state = exchanged_state(build_model(light_plan(Path(), 1, model=MODEL, **parts).config.model, 2, seed=0))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    print(json.dumps({"peaks": {count: peak(case, int(count)) for count in counts}, "model": size}))


if __name__ == "__main__":
    main()
