"""The fault drill: every case that a federation must survive, played on a real one, and what a person saw.

    python benchmarks/faults/drill.py --out docs/results/faults        # needs root (small disks), libfaketime

Ends with 1 if a case did not end as it should. A scene may be played alone: --scenes payloads,corrupt.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import certificates
import keys
import payloads
import postgres
import servers
import sites
from stage import BAD, GOOD, LIGHT, NO_EVENT, NO_FAULT, THIRD, Machine, Stage, broken_tree

SCENES: dict[str, Callable[[Stage], None]] = {
    "payloads": payloads.play,
    "all-fail": payloads.all_fail,
    "too-few": servers.too_few,
    "corrupt": servers.corrupt_checkpoint,
    "full-model": partial(servers.disk_full, where="model"),
    "full-record": partial(servers.disk_full, where="record"),
    "full-answers": partial(servers.disk_full, where="answers"),
    "full-audit": servers.audit_full,
    "database": servers.database_away,
    "gateway": servers.gateway_killed,
    "sites": servers.sites_killed,
    "clock": sites.clock_skew,
    "key-twice": keys.used_twice,
    "certificates": certificates.play,
    "data": sites.data_that_cannot_be_used,
    "keys": keys.revoked_and_unknown,
    "postgres": postgres.killed,
    "budget": sites.budget_spent,
}
"""Played in this order; a scene leaves the federation as it found it, but for the key that is revoked near the end, and
the images that were trained on under a budget and can be used under one only."""
NOT_LOOKED_FOR = "not looked for"
INTRODUCTION = """# The fault drill

Printed by `python benchmarks/faults/drill.py --out docs/results/faults`; the whole texts are in `faults.json`. A real
server (`popmi server up`) and three real sites (`popmi site run`) on phantoms, each a process tree of its own, low-rank
adapters on a ViT of 29 k parameters. Payload faults come from sites whose approved code was changed to send them. What
was seen is what the record, `popmi server status` or the command line showed, cut after some letters. *Audit event*:
looked for in the hash-chained logs of the server (`popmi server audit show`) and of the site (`popmi site audit show`)
once the fault had shown; *none*: neither log tells of it, *-*: the line is no fault.

{good} of {all} lines ended as they should. {audited}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(SCENES), help="with , between")
    parser.add_argument("--add", action="store_true", help="keep what OUT.json holds of the other scenes")
    parser.add_argument("--from-json", action="store_true", help="play nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    given = parser.parse_args()
    told = given.out.with_suffix(".json")
    if not given.from_json:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(told.read_text()) if given.add and told.exists() else {}
        with tempfile.TemporaryDirectory() as folder:
            drill(Path(folder), given.scenes.split(","), told, before)
    found = json.loads(told.read_text())
    given.out.with_suffix(".md").write_text(report(found))
    sys.exit(0 if all(row["good"] for rows in found.values() for row in rows) else 1)


def drill(folder: Path, scenes: list[str], told: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Play scenes on one federation; what became of each is written as soon as it is known."""
    tree = broken_tree(folder / "tree")
    data = {site: f"phantom:{site}" for site in (GOOD, BAD, THIRD)}
    with Machine(folder / "federation", data, LIGHT, tree=tree) as machine:
        machine.set_up()
        if "payloads" in scenes:
            machine.popmi(
                "site", "approve", "--withdraw", machine_code(machine), "--home", str(machine.site(THIRD).folder)
            )
        machine.all_up()
        for scene in scenes:
            begun = time.monotonic()

            def tell(now: list[dict[str, Any]], scene: str = scene) -> None:
                found[scene] = now
                told.write_text(json.dumps(found, indent=1) + "\n")

            stage = Stage(machine, tell)
            stage.attempt(scene, f"scene {scene}", partial(SCENES[scene], stage))
            rest(machine)
            print(f"scene {scene}: {time.monotonic() - begun:.0f} s", flush=True)


def machine_code(machine: Machine) -> str:
    """Return the hash of the code that the sites have approved."""
    return str(json.loads(machine.site(THIRD).approved.read_text())[0]["code"])


def rest(machine: Machine) -> None:
    """End a run that a scene left going, so that the next can begin."""
    machine.popmi("server", "stop", expect=None)


def report(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the whole page."""
    rows = sorted((row for scene in found.values() for row in scene), key=order)
    lines = [
        INTRODUCTION.format(good=sum(row["good"] for row in rows), all=len(rows), audited=audited(rows)),
        "| case | fault | what was done | what was seen | did the run go on | audit event | as it should |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        told = {"audit": NOT_LOOKED_FOR, **row}
        cells = [str(told[key]).replace("|", "/") for key in ("case", "what", "done", "seen", "went_on", "audit")]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['good'] else '**NO**'} |")
    return "\n".join(lines) + "\n"


def audited(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many faults an audit log tells of, and which cases hold a line that none does."""
    faults = [row for row in rows if row.get("audit", NO_FAULT) != NO_FAULT]
    if not faults:
        return "Audit events were not looked for."
    silent = [str(row["case"]) for row in faults if row["audit"] == NO_EVENT]
    among = f" (none: case {', '.join(dict.fromkeys(silent))})" if silent else ""
    return f"An audit event tells of {len(faults) - len(silent)} of {len(faults)} faults{among}."


def order(row: Mapping[str, Any]) -> tuple[int, str]:
    """Return where a line belongs: cases by number, then what has none."""
    first = str(row["case"]).partition("-")[0]
    return (int(first), "") if first.isdigit() and "-" not in row["case"] else (99, str(row["case"]))


if __name__ == "__main__":
    main()
