"""How many sites does one server bear? Light sites (lights.py) on a real server: seconds a round, memory, a slow line.

    python benchmarks/federation/load.py --out docs/results/load

Light sites do not train, so a round's seconds are the server's and the network's own. Every case has a fresh server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from machine import Machine, NotInTime, cpu_seconds, free_ports, peak_megabytes
from transport import FLOWERS_SUPERLINK, changed_tree

from popmi_core.deployment import Enrolment
from server.control.sites import add_site

HERE = Path(__file__).parent
MODELS: dict[str, dict[str, Any]] = {
    "popmi_vit_micro": {"backbone": "popmi_vit_micro", "image_size": 32},
    "popmi_vit_nano": {"backbone": "popmi_vit_nano", "image_size": 64},
    "vit_tiny_patch16_224": {"backbone": "vit_tiny_patch16_224", "image_size": 224},
}
WATCHED = ("superlink", "server app", "gateway", "lights")
INTRODUCTION = """# Load: many sites on one server

Printed by `python benchmarks/federation/load.py --out docs/results/load`; every figure is in `load.json`. Light sites:
one process that speaks Flower's fleet protocol for all of them, a key each, through gateway and TLS; `train` answers
the broadcast model with a small change at once, `evaluate` has no image. Strategy fedavg, {cores} cores for server and
sites together (load average when begun: {load}), so the seconds hold the sites' share of encryption, too. *s*:
processor seconds a round of each process; *MB*: its highest resident size (VmHWM). *slowest*: of so few rounds the
worst is told, no percentile. *status*: how the run ended; one that failed or was cut off at --limit did not do all its
rounds. *@flower*: the SuperLink uses its database and its web stack as Flower alone does (server/control/patient.py and
straight.py say what is changed), everything else as in the other rows.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        default="popmi_vit_micro:2,10,50,100;popmi_vit_micro@flower:10,50;vit_tiny_patch16_224:2,10",
        help="MODEL:N,N;... MODEL@flower: the SuperLink as Flower alone",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", default="popmi_vit_micro", help="models on the slow line; empty: none")
    parser.add_argument("--add", action="store_true", help="keep what OUT.json holds of other cases")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a case may take")
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    given = parser.parse_args()
    told = given.out.with_suffix(".json")
    if not given.from_json:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "rows": [], "slow": []}
        if given.add:
            found = json.loads(told.read_text())
        for part in given.cases.split(";") if given.cases else []:
            model, _, counts = part.partition(":")
            for count in map(int, counts.split(",")):
                found["rows"] = [row for row in found["rows"] if (row["model"], row["sites"]) != (model, count)]
                found["rows"].append(loaded(model, count, given.rounds, given.limit))
                told.write_text(json.dumps(found, indent=1) + "\n")
        for model in given.slow.split(",") if given.slow else ():
            found["slow"] = [row for row in found["slow"] if row["model"] != model]
            for slow, quorum in ((False, None), (True, None), (True, 3)):
                found["slow"].append(behind_a_line(model, slow, quorum, given.rounds, given.limit))
                told.write_text(json.dumps(found, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


class LightFederation:
    """A real server with light sites, in a folder."""

    def __init__(self, folder: Path, model: str, sites: Sequence[str], config: Mapping[str, Any]) -> None:
        name, _, way = model.partition("@")
        given = {"strategy": "fedavg", "model": MODELS[name], "timeout": 900.0, "limits": {"join": 300.0}, **config}
        tree = changed_tree(folder.parent / f"{folder.name}-tree", (FLOWERS_SUPERLINK,) if way else ())
        self.machine, self.names = Machine(folder, {}, given, tree=tree), list(sites)
        self.diary = folder / "diary.jsonl"

    def begin(self, endpoints: Mapping[str, str] | None = None) -> None:
        """Set up, start the server and the sites, and wait until they are on line."""
        machine, told = self.machine, {}
        machine.set_up()
        (machine.folder / "confirm").mkdir()
        for site in self.names:
            key = ec.generate_private_key(ec.SECP384R1())
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            add_site(machine.home, site)
            enrolment = Enrolment(project="Drill", site=site, public_key=public.decode())
            (machine.folder / "confirm" / f"{site}.json").write_text(enrolment.model_dump_json())
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            told[site] = {"endpoint": (endpoints or {}).get(site, machine.endpoint), "key": private.decode()}
        machine.up()
        machine.until(lambda: all(entry.node_id for entry in machine.home.sites().values()), "all keys let in")
        (machine.folder / "sites.json").write_text(json.dumps(told))
        self.start("lights", HERE / "lights.py", machine.folder / "sites.json", machine.home.ca, self.diary)
        machine.until(lambda: machine.online() >= set(self.names), "all sites on line", every=4.0)

    def start(self, name: str, *words: object) -> None:
        """Start a program of this folder."""
        with (self.machine.folder / f"{name}.log").open("ab") as out:
            self.machine.running[name] = subprocess.Popen(
                [sys.executable, *map(str, words)], env=self.machine.env, stdout=out, stderr=out, start_new_session=True
            )

    def run(self, name: str, limit: float) -> dict[str, dict[str, float]]:
        """Run to the end, or to the limit; return peak memory (MB) and processor seconds of each process by name."""
        peaks, used = dict.fromkeys(WATCHED, 0.0), dict.fromkeys(WATCHED, 0.0)
        before = {part: cpu_seconds(self.machine.process(part) or 0) for part in WATCHED}
        self.machine.begin(name)
        end = time.monotonic() + limit
        while not self.machine.ended(name) and time.monotonic() < end:
            for part in WATCHED:
                process = self.machine.process(part) or 0
                peaks[part] = max(peaks[part], peak_megabytes(process))
                used[part] = max(used[part], cpu_seconds(process) - before[part])
            time.sleep(1.0)
        return {"peaks": peaks, "processor": used}


def loaded(model: str, count: int, rounds: int, limit: float) -> dict[str, Any]:
    """Return what one case took."""
    sites = [f"light{number:03d}" for number in range(count)]
    row: dict[str, Any] = {"model": model, "sites": count}
    with tempfile.TemporaryDirectory() as folder:
        federation = LightFederation(Path(folder) / "load", model, sites, {"rounds": rounds})
        with federation.machine as machine:
            try:
                federation.begin()
                row |= federation.run("load", limit)
                row |= seen(machine, "load")
            except NotInTime as error:
                row["trouble"] = str(error)[:300]
    print(json.dumps(row), flush=True)
    return row


def seen(machine: Machine, run: str) -> dict[str, Any]:
    """Return what the record says: seconds of each round, sites that answered, bytes of the model."""
    with machine.record(run) as reader:
        head = reader.run()
        rounds = [row for row in reader.rounds(head.id) if row.finished is not None]
        sites = reader.sites(head.id)
    seconds = [row.seconds_total or 0.0 for row in rounds]
    trained = [row for row in sites if row.phase == "train"]
    return {
        "status": head.status, "reason": head.reason, "seconds": seconds, "p50": statistics.median(seconds or [0.0]),
        "p95": percentile(seconds, 95.0), "model_megabytes": max([row.bytes_down or 0 for row in trained] or [0]) / 1e6,
        "seconds_combine": [row.seconds_fuse for row in rounds],
        "outcomes": {word: sum(row.outcome == word for row in trained) for word in {row.outcome for row in trained}},
    }  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` percent of the values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share) // 100) - 1)] if ordered else 0.0


def behind_a_line(model: str, slow: bool, quorum: int | None, rounds: int, limit: float) -> dict[str, Any]:
    """Return what happens with one of four sites at 1 Mbit/s, 200 ms and 2 % loss; beside it, with none."""
    sites = ["slow", *(f"quick{number}" for number in range(3))]
    limits: dict[str, Any] = {"join": 300.0, **({} if quorum is None else {"quorum": quorum, "grace": 0.0})}
    row: dict[str, Any] = {"model": model, "slow": slow, "quorum": quorum}
    with tempfile.TemporaryDirectory() as folder:
        federation = LightFederation(Path(folder) / "load", model, sites, {"rounds": rounds, "limits": limits})
        with federation.machine as machine:
            (port,) = free_ports(1)
            federation.start("line", HERE / "slowline.py", port, machine.public)
            try:
                federation.begin({"slow": f"localhost:{port}"} if slow else {})
                federation.run("slow", limit)
                row |= seen(machine, "slow") | {"diary": by_site(federation.diary)}
            except NotInTime as error:
                row["trouble"] = str(error)[:300]
    print(json.dumps(row), flush=True)
    return row


def by_site(diary: Path) -> dict[str, dict[str, float]]:
    """Return the median seconds to fetch the question and to send the answer of `train`, by site."""
    lines = [json.loads(line) for line in diary.read_text().splitlines()]
    found = {}
    for site in sorted({line["site"] for line in lines}):
        mine = [line for line in lines if line["site"] == site and line["kind"].startswith("train")]
        if mine:
            found[site] = {what: statistics.median(line[what] for line in mine) for what in ("pulled", "pushed")}
    return found


def report(found: Mapping[str, Any]) -> str:
    """Return the whole page."""
    lines = [
        INTRODUCTION.format(**found),
        "| model | MB | sites | rounds | s a round, median | slowest | "
        + " | ".join(
            f"{name}, {unit}" for unit in ("s", "MB") for name in ("SuperLink", "server app", "gateway", "light sites")
        )
        + " | outcomes | status |",
        "| --- |" + " ---: |" * 13 + " --- | --- |",
    ]
    for row in found["rows"]:
        if "trouble" in row or not row["seconds"]:
            lines.append(
                f"| {row['model']} | | {row['sites']} | {row.get('trouble', 'no round was finished')} |"
                + " |" * 11
                + f" {ended(row)} |"
            )
            continue
        peaks = row["peaks"]
        memory = " | ".join(f"{peaks[name]:.0f}" for name in WATCHED)
        busy = " | ".join(f"{row['processor'][name] / len(row['seconds']):.1f}" for name in WATCHED)
        outcomes = ", ".join(f"{count} {word}" for word, count in sorted(row["outcomes"].items()))
        lines.append(
            f"| {row['model']} | {row['model_megabytes']:.2f} | {row['sites']} | {len(row['seconds'])} | "
            f"{row['p50']:.1f} | {max(row['seconds']):.1f} | {busy} | {memory} | {outcomes} | {ended(row)} |"
        )
    lines += [f"\n{found['note']}"] if "note" in found else []
    return "\n".join([*lines, "", *slow_part(found["slow"])]) + "\n"


def ended(row: Mapping[str, Any]) -> str:
    """Return how a case ended, so that one that was cut off or failed does not read like a good one."""
    status, reason = row.get("status"), row.get("reason")
    if status == "finished":
        return "finished"
    if status == "failed":
        return f"**failed**: {reason}"
    return "**not begun**" if status is None else f"**cut off** at the limit, still {status}"


def slow_part(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the page's part on the slow line."""
    if not rows:
        return []
    lines = [
        "## One of four sites behind 1 Mbit/s, 200 ms, 2 % loss\n",
        "This machine's kernel has no netem: slowline.py stands in front of the gateway, 1 Mbit/s each way for all "
        "of the site's connections, 100 ms each way; a lost segment holds its connection up for one round trip more. "
        "*Waits for*: with a quorum of 3 and no grace, the round goes on with the first three answers. *Fetch, send*: "
        "median seconds until the question of `train` is there, and its answer sent.\n",
        "| model | line | waits for | s a round, median | this site: fetch, send | another: fetch, send | outcomes | "
        "status |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        begin = f"| {row['model']} | {'slow' if row['slow'] else 'as quick as the others'} | {row['quorum'] or 'all'} |"
        if "trouble" in row:
            lines.append(f"{begin} {row['trouble']} |" + " |" * 3 + f" {ended(row)} |")
            continue
        diary = row["diary"]
        cells = [
            "none came through"
            if site not in diary
            else f"{diary[site]['pulled']:.1f} s, {diary[site]['pushed']:.1f} s"
            for site in ("slow", "quick0")
        ]
        outcomes = ", ".join(f"{count} {word}" for word, count in sorted(row["outcomes"].items()))
        median = f"{row['p50']:.1f}" if row.get("seconds", True) else "no round"
        lines.append(f"{begin} {median} | {cells[0]} | {cells[1]} | {outcomes} | {ended(row)} |")
    return lines


if __name__ == "__main__":
    main()
