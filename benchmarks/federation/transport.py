"""What does the way between server and site cost a round? As Flower does it, and as POPMI does, side by side.

    python benchmarks/federation/transport.py --out docs/results/transport

Real server, real sites as processes on this machine. Ways differ in three places: whether every tensor travels by
itself or all of a record as one block (popmi_core/packing.py), how often a site's node looks for a question, and
whether the SuperLink spares its database and web stack (server/control/patient.py, straight.py). The last two change
together, from the second way to the third: looking more often costs the database more, and what each is worth alone is
not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import ROOT, Machine

SITES = ("phantom_polarised", "phantom_ruler", "phantom_slide")
PLAIN = ("server/exchange.py", "in for_the_way(questions)", "in questions")
FLOWERS_SUPERLINK = (
    "server/control/patient.py",
    "    spare_the_database()\n    go_straight()\n    flower_superlink",
    "    flower_superlink",
)
SELDOM = ("client/site/node.py", "_pull_and_store_message = next_question", "_pull_and_store_message = fetch_whole")
WAYS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "each tensor by itself, every 3 s": (PLAIN, SELDOM, FLOWERS_SUPERLINK),
    "one block, every 3 s": (SELDOM, FLOWERS_SUPERLINK),
    "one block, a fifth of the wait, SuperLink spared": (),
}
"""What is changed back in a copy of the code: file, text, text before."""
MODELS: dict[str, dict[str, Any]] = {
    "popmi_vit_micro": {"backbone": "popmi_vit_micro", "image_size": 32},
    "resnet18": {"backbone": "resnet18", "image_size": 32},
}
INTRODUCTION = """# What the way costs a round

Printed by `python benchmarks/federation/transport.py --out docs/results/transport`; every figure is in
`transport.json`. {sites} sites as processes (TLS, keys, gates), {rounds} rounds a run, strategy fedavg, 42 training
images a site, {cores} cores for everything (load average when begun: {load}). Seconds are a round's, from its first
question to its record; the first round of a run, in which workers start, is left out.
"""
DIFFERENCES = """The first row of a model is Flower's own way; the second differs from it by one block alone, the third
from the second by two changes together: how often a node looks for a question (a fifth of the time it has waited, 0.3
to 3 s), and a SuperLink that spares its database and its web stack."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    given = parser.parse_args()
    told = given.out.with_suffix(".json")
    if not given.from_json:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {
            "sites": len(SITES), "rounds": given.rounds, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
            "rows": [],
        }  # fmt: skip
        for way, changes in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                found["rows"] += measured(Path(folder), way, changes, given.rounds)
            told.write_text(json.dumps(found, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def measured(folder: Path, way: str, changes: tuple[tuple[str, str, str], ...], rounds: int) -> list[dict[str, Any]]:
    """Return a row for every model, all through one federation."""
    tree, rows = changed_tree(folder / "tree", changes), []
    with Machine(folder / "federation", {site: f"phantom:{site}" for site in SITES}, tree=tree) as machine:
        machine.set_up()
        machine.all_up()
        for model, described in MODELS.items():
            begun = time.monotonic()
            changed = {"strategy": "fedavg", "rounds": rounds, "timeout": 600.0, "model": described}
            machine.begin(model, {**changed, "sites": list(SITES)})
            status = machine.until(lambda name=model: machine.ended(name), f"the end of run {model}", 1500)  # type: ignore[misc]
            with machine.record(model) as reader:
                head = reader.run()
                taken = [row for row in reader.rounds(head.id) if row.finished is not None]
                bytes_down = max(row.bytes_down or 0 for row in reader.sites(head.id) if row.phase == "train")
            row = {
                "way": way, "model": model, "status": status, "megabytes": bytes_down / 1e6,
                "seconds": [one.seconds_total for one in taken], "whole_run": time.monotonic() - begun,
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def changed_tree(folder: Path, changes: tuple[tuple[str, str, str], ...]) -> Path:
    """Copy the product into a folder with some texts replaced; return the folder.

    Raises:
        ValueError: If a text is not there exactly once.
    """
    for package in ("server", "client", "popmi_core"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, new, old in changes:
        text = (folder / name).read_text()
        if text.count(new) != 1:
            raise ValueError(f"{name}: {new!r} is there {text.count(new)} times, expected once")
        (folder / name).write_text(text.replace(new, old))
    return folder


def report(found: Mapping[str, Any]) -> str:
    """Return the whole page."""
    lines = [INTRODUCTION.format(**found), "| model | MB | way | s a round, median | least | most | whole run, s |"]
    lines.append("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for row in sorted(found["rows"], key=lambda row: list(MODELS).index(row["model"])):
        later = row["seconds"][1:] or row["seconds"]
        lines.append(
            f"| {row['model']} | {row['megabytes']:.2f} | {row['way']} | {statistics.median(later):.1f} | "
            f"{min(later):.1f} | {max(later):.1f} | {row['whole_run']:.0f} |"
        )
    lines.append(f"\n{found.get('note', DIFFERENCES)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
