"""Wall time and memory of the federation in containers, one run on phantoms or on prepared images.

    python benchmarks/federation/compose.py --out docs/results/compose
    python benchmarks/federation/compose.py --out docs/results/compose --data FOLDER
    python benchmarks/federation/compose.py --out docs/results/compose --from-json      # print the page again

FOLDER is a prepared data set: dataset.json, and one folder a site with labels.csv. Builds the image, starts five sites
under a project name of its own, samples `docker stats` until the run has ended, takes everything down. Adds the run to
compose.json (one entry for each data set, known by its folder's name and the size of its images) and writes the table
compose.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from popmi_core.data.card import read_card
from popmi_core.deployment.compose import compose_settings

ROOT = Path(__file__).parents[2]
PROJECT = "popmi-measure"
PORT = "8089"
PATIENCE = 3600.0
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
PICTURES = (".png", ".jpg", ".jpeg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared data set; default: phantoms")
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".json")
    if not arguments.from_json:
        add(file, measure(environment(arguments.data), label(arguments.data)))
    arguments.out.with_suffix(".md").write_text(page(json.loads(file.read_text())))


def add(file: Path, measured: dict[str, Any]) -> None:
    """Put a run into the file, in the place of an earlier one with the same images."""
    kept = list(json.loads(file.read_text())) if file.exists() else []
    kept = [row for row in kept if row["data"] != measured["data"]] + [measured]
    file.write_text(json.dumps(kept, indent=1) + "\n")


def label(data: Path | None) -> str:
    """Return what a data set is called on the page: its folder's name and the pixels of its images, if it has any."""
    if data is None:
        return "phantom"
    sizes = set()
    for path in sorted(path for site in sites_of(data) for path in (data / site).rglob("*") if path.suffix in PICTURES):
        with Image.open(path) as picture:
            sizes.add(picture.size)
    if not sizes:
        raise SystemExit(f"{data}: its sites hold no {', '.join(PICTURES)}, expected prepared images (docs/data.md).")
    least, most = min(sizes), max(sizes)
    told = "{} x {}".format(*least)
    return f"{data.resolve().name}, {told if least == most else told + ' to {} x {}'.format(*most)} px"


def sites_of(data: Path) -> list[str]:
    """Return the first five sites of a prepared data set."""
    return sorted(read_card(data).sites)[:5]


def environment(data: Path | None) -> dict[str, str]:
    """Return what tells compose of the sites and their images."""
    told = os.environ | {"DASHBOARD_PORT": PORT, "COMPOSE_ENV_FILES": "/dev/null"}
    return told if data is None else told | compose_settings(data, sites_of(data))


def measure(told: dict[str, str], name: str) -> dict[str, Any]:
    """Build, run and take down; return times in seconds and memory in bytes."""
    compose(told, "--profile", "*", "down", "--volumes", "--timeout", "5")
    begun = time.time()
    compose(told, "build")
    built = time.time()
    try:
        compose(told, "up", "--detach")
        up = time.time()
        samples: dict[str, list[int]] = defaultdict(list)
        while (run := head()).get("status") not in ("finished", "failed", "stopped"):
            if time.time() > up + PATIENCE:
                raise SystemExit(f"the run did not end within {PATIENCE:.0f} s: {run}")
            for service, used in memory().items():
                samples[service].append(used)
            time.sleep(1)
        rounds = [row for row in ask(f"/runs/{run['key']}/rounds") if row["server_round"] > 0]
        sites = ask(f"/runs/{run['key']}/sites")
        auroc = [
            row["value"]
            for row in ask(f"/runs/{run['key']}/metrics")
            if (row["name"], row["split"], row["scope"]) == ("auroc", "val", "global")
        ]
    finally:
        compose(told, "--profile", "*", "down", "--volumes", "--timeout", "5")
    return {
        "data": name,
        "status": run["status"],
        "reason": run["reason"],
        "measured": time.strftime("%Y-%m-%d", time.gmtime(begun)),
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[2],
        "seconds": {
            "build": round(built - begun, 1),
            "up": round(up - built, 1),
            "up_to_first_round": round(rounds[0]["started"] - built, 1) if rounds else None,
            "up_to_end": round(run["finished"] - built, 1),
            "rounds": [round(row["seconds_total"], 1) for row in rounds],
            "train": [round(row["seconds_train"], 1) for row in rounds],
        },
        "images": {row["site"]: row["num_examples"] for row in sites if row["phase"] == "train"},
        "auroc_validation": auroc,
        "memory": {
            name: {"samples": len(used), "peak": max(used), "median": statistics.median(used)}
            for name, used in sorted(samples.items())
        },
    }


def compose(told: dict[str, str], *words: str) -> None:
    """Run `docker compose` under the measurement's own project name."""
    subprocess.run(
        ["docker", "compose", "--project-name", PROJECT, *words],
        cwd=ROOT, env=told, check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip


def ask(path: str) -> Any:
    """Ask the pages' ``/api/v1``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/v1{path}", timeout=20) as answer:
        return json.load(answer)


def head() -> dict[str, Any]:
    """Return the run's head, empty before it has begun."""
    try:
        return dict(next(iter(ask("/runs")), {}))
    except OSError:
        return {}


def memory() -> dict[str, int]:
    """Return bytes in use by service, as `docker stats` counts them: without the page cache."""
    done = subprocess.run(
        ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"], capture_output=True, text=True
    )
    found = re.findall(rf"^{PROJECT}-(.+)-1 ([\d.]+)([KMG]?i?B) /", done.stdout, re.MULTILINE)
    return {service: int(float(number) * UNITS[unit]) for service, number, unit in found}


def page(rows: list[dict[str, Any]]) -> str:
    """Return the tables as markdown."""
    lines = [
        "# The federation in containers: time and memory",
        "",
        "    python benchmarks/federation/compose.py --out docs/results/compose [--data FOLDER]",
        "",
        "`docker compose up` with five sites and three rounds of OPM (`deploy/compose/run.toml`), all on one",
        "machine; one run each. The load is the mean of the last 15 minutes: above the number of cores, work waited.",
        "Memory is what `docker stats` says, a sample in about three seconds. Raw figures: compose.json.",
        "",
        "| | " + " | ".join(row["data"] for row in rows) + " |",
        "| --- |" + " ---: |" * len(rows),
    ]
    facts: dict[str, Callable[[dict[str, Any]], str]] = {
        "how it ended": lambda row: (
            row["status"] if row["status"] == "finished" else f"**{row['status']}**: {row['reason']}"
        ),
        "images trained on": lambda row: f"{sum(row['images'].values()):,}",
        "cores; load": lambda row: f"{row['cores']}; {row['load_at_end']:.1f}",
        "image built or brought up to date, s": lambda row: f"{row['seconds']['build']:.0f}",
        "from `up` to the start of the first round, s": lambda row: _seconds(row["seconds"]["up_to_first_round"]),
        "from `up` to the run's end, s": lambda row: f"{row['seconds']['up_to_end']:.0f}",
        "rounds, s": lambda row: _list(row["seconds"]["rounds"]),
        "training, all sites' seconds added up": lambda row: _list(row["seconds"]["train"]),
        "AUROC (validation) by round": lambda row: ", ".join(f"{value:.3f}" for value in row["auroc_validation"]),
    }
    lines += [f"| {name} | " + " | ".join(told(row) for row in rows) + " |" for name, told in facts.items()]
    lines += ["", "| container | " + " | ".join(f"{row['data']}: median MiB | peak MiB" for row in rows) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(rows))
    for service in sorted({name for row in rows for name in row["memory"]}):
        cells = [row["memory"].get(service) for row in rows]
        lines.append(
            f"| {service} | " + " | ".join(f"{_mib(cell, 'median')} | {_mib(cell, 'peak')}" for cell in cells) + " |"
        )
    return "\n".join(lines) + "\n"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


def _mib(cell: dict[str, float] | None, name: str) -> str:
    return "-" if cell is None else f"{cell[name] / 2**20:,.0f}"


if __name__ == "__main__":
    main()
