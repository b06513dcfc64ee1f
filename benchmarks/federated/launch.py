"""Run a described federation once, in a process of its own, and keep it below a folder by a hash of its description."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from popmi_core.config import parse_config


def digest_of(described: dict[str, Any]) -> str:
    """Return the hash of a whole description, defaults included."""
    return hashlib.sha256(parse_config(described).model_dump_json().encode()).hexdigest()[:12]


def finished_run(described: dict[str, Any], runs: Path) -> Path | None:
    """Return the folder of the finished run: made now, gone on with, or found; None if it failed (see its log)."""
    runs.mkdir(parents=True, exist_ok=True)
    digest = digest_of(described)
    folder, log = runs / digest, runs / f"{digest}.log"
    if (folder / "plan.json").exists():
        command = ["--resume", str(folder)]
    else:
        (runs / f"{digest}.toml").write_text(tomli_w.dumps(described))
        command = [str(runs / f"{digest}.toml"), "--out", str(folder)]
    with log.open("a") as output:
        ended = subprocess.run(
            [str(Path(sys.executable).parent / "popmi"), "simulate", *command],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if ended.returncode != 0:
        print(f"{described['strategy']}, seed {described.get('seed', 0)}: failed, see {log}", flush=True)
        return None
    return folder
