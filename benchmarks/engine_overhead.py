"""Seconds of a round outside training and evaluation, and the in-process engine against Ray, in one run.

    python benchmarks/engine_overhead.py --out docs/results/engine_overhead

Every repeat starts a fresh `popmi simulate` process of each engine in turn, on the same description and seed. Writes
engine_overhead.json (every run) and engine_overhead.md (medians).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENGINES = ("inprocess", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "deploy" / "demo.toml")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for engine in ENGINES:
                rows.append(run(engine, arguments, Path(folder) / f"{engine}-{repeat}"))
                print(json.dumps(rows[-1]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows, arguments))


def run(engine: str, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run one process and return its wall time and what its record says of its rounds."""
    popmi = Path(sys.executable).with_name("popmi")
    command = [popmi, "simulate", arguments.config, "--rounds", arguments.rounds, "--engine", engine, "--out", out]
    begun = time.perf_counter()
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - begun
    summary = json.loads(done.stdout)
    return {
        "engine": engine,
        "data": summary["data"],
        "phantom": summary["phantom"],
        "process_seconds": round(wall, 2),
        "round_seconds": round(summary["seconds"] / summary["rounds"], 3),
        "overhead": summary["overhead"],
    }


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return medians by engine as markdown."""
    data = rows[0]["data"] + (" (phantom)" if rows[0]["phantom"] else "")
    lines = [
        f"Data: {data}; {arguments.config.name}, {arguments.rounds} rounds, median of {arguments.repeats} processes.",
        "",
        "| engine | whole process, s | one round, s | share of a round outside training and evaluation |",
        "| --- | ---: | ---: | ---: |",
    ]
    for engine in ENGINES:
        mine = [row for row in rows if row["engine"] == engine]
        whole, one = (statistics.median(row[name] for row in mine) for name in ("process_seconds", "round_seconds"))
        # Ray trains sites side by side: the busy seconds of all sites exceed the wall time, so no share exists.
        share = f"{statistics.median(row['overhead'] for row in mine):.1%}" if engine == "inprocess" else "-"
        lines.append(f"| {engine} | {whole:.1f} | {one:.1f} | {share} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
