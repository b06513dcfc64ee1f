"""Fusion rules, server optimisers and local objectives on the five real sites, same start, equal work.

    python benchmarks/federated/study.py --out docs/results/federated

A first seed screens every case (cases.py); further seeds are run for --deep. Runs are kept below --runs by a hash of
their description, so that a study that was stopped goes on; --jobs runs go on at a time, one thread each. Where that
folder is lost, --from-json takes the rows of --out's own JSON for it, of cases that are described as they were. Figures
are exact, computed here from the last models on the sites' validation images (screening) and test images.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cases import CASES
from figures import figures_of
from launch import digest_of, finished_run
from tables import markdown

from popmi_core.config import overlay

Run = tuple[str, int]


def main() -> None:
    arguments = parse_arguments()
    if arguments.from_json:
        keep(json.loads(arguments.out.with_suffix(".json").read_text()), arguments.runs)
    wanted = planned(arguments)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda run: finished(run, arguments.runs, kept_only=arguments.kept_only), wanted))
    rows = [row for row in done if row is not None]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"cases": CASES, "runs": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names with ; between, default all")
    parser.add_argument("--deep", default="", help="names with ; between that get --seeds seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kept-only", action="store_true", help="run nothing; tell what is there, of every seed")
    parser.add_argument("--from-json", action="store_true", help="count the rows of --out's JSON as run")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def planned(arguments: argparse.Namespace) -> list[Run]:
    """Return the runs to do: every case once, then the deep ones with further seeds."""
    names = [name for name in arguments.cases.split(";") if name] or list(CASES)
    deep = [name for name in arguments.deep.split(";") if name]
    unknown = sorted({*names, *deep} - set(CASES))
    if unknown:
        sys.exit(f"unknown case {unknown[0]!r}; the cases are: {'; '.join(CASES)}")
    if arguments.kept_only:
        return [(name, seed) for name in names for seed in range(arguments.seeds)]
    return [(name, 0) for name in names] + [(name, seed) for seed in range(1, arguments.seeds) for name in deep]


def keep(told: dict[str, Any], runs: Path) -> None:
    """Put a study's rows where finished runs are kept, but for what is there and cases described otherwise by now."""
    runs.mkdir(parents=True, exist_ok=True)
    for row in told["runs"]:
        name = row["case"]
        if CASES.get(name) != told["cases"].get(name):
            continue
        kept = runs / f"{digest_of({**CASES[name], 'seed': row['seed']})}.json"
        if not kept.exists():
            figures = {key: value for key, value in row.items() if key not in ("case", "seed")}
            kept.write_text(json.dumps(figures) + "\n")


def finished(run: Run, runs: Path, *, kept_only: bool) -> dict[str, Any] | None:
    """Run what is not there yet, go on with what was stopped, and return its figures; None if it failed."""
    name, seed = run
    described = {**CASES[name], "seed": seed}
    kept = runs / f"{digest_of(described)}.json"
    if kept.exists():
        return {"case": name, "seed": seed, **json.loads(kept.read_text())}
    if kept_only:
        return None
    begun = time.perf_counter()
    # A site's own class mix changes its answers and no training: the plain run's models will do.
    own = described.get("personal", {}).get("class_prior") == "own"
    folder = finished_run(overlay(described, {"personal": {"class_prior": "common"}}) if own else described, runs)
    if folder is None:
        return None
    found = {**figures_of(folder, own_prior=own), "wall_seconds": round(time.perf_counter() - begun, 1)}
    kept.write_text(json.dumps(found) + "\n")
    print(json.dumps({"case": name, "seed": seed, **{k: v for k, v in found.items() if k != "site_auroc"}}), flush=True)
    return {"case": name, "seed": seed, **found}


if __name__ == "__main__":
    main()
