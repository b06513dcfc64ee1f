"""One description, one seed, the same sites: through `popmi simulate`, through processes, and through containers.

    python benchmarks/federation/equal.py --out docs/results/equal [--compose EXPORT.zip]

The last global model's tensors are hashed (names, types, shapes, bytes); where hashes differ, the largest difference is
told. EXPORT.zip is what `popmi server export` wrote of a run in containers with the description this command prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import Machine
from torch import Tensor

from popmi_core.checkpoints import load_state

SITES = ("phantom_polarised", "phantom_ruler", "phantom_slide")
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "opm": {"strategy": "opm"},
    "fedavg": {"strategy": "fedavg"},
    "control variates, momentum": {
        "strategy": "opm",
        "local": {"batch_size": 32, "objective": "control_variates"},
        "server_optimizer": {"name": "momentum"},
    },
}
INTRODUCTION = """# Is it the same model, however it was trained?

Printed by `python benchmarks/federation/equal.py --out docs/results/equal`; every figure is in `equal.json`. One
description and seed, {sites} phantom sites, {rounds} rounds, popmi_vit_micro at 32 pixels, one thread a process:
`popmi simulate` in one process; `popmi server up` with `popmi site run` (TLS, keys, gates, forked workers). Compared
are the tensors of the last global model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=";".join(DESCRIPTIONS), help="with ; between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compose", type=Path, help="export of the first case's run in containers")
    parser.add_argument("--add", action="store_true", help="keep what OUT.json holds of other cases")
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    told = arguments.out.with_suffix(".json")
    if not arguments.from_json:
        with tempfile.TemporaryDirectory() as folder:
            rows = compared(Path(folder), arguments.cases.split(";"), arguments.rounds, arguments.compose)
        before = json.loads(told.read_text())["rows"] if arguments.add and told.exists() else []
        rows = [row for row in before if row["case"] not in arguments.cases.split(";")] + rows
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"sites": len(SITES), "rounds": arguments.rounds, "rows": rows}
        told.write_text(json.dumps(found, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def compared(folder: Path, cases: list[str], rounds: int, compose: Path | None) -> list[dict[str, Any]]:
    """Return one row a case and way of running; all cases go through one server, one after the other."""
    rows = []
    with Machine(folder, {site: f"phantom:{site}" for site in SITES}, {"rounds": rounds}) as machine:
        machine.set_up()
        machine.all_up()
        for number, case in enumerate(cases):
            changes = {**DESCRIPTIONS[case], "sites": list(SITES)}
            begun = time.monotonic()
            simulated = simulate(machine, f"simulated-{number}", changes)
            rows.append(
                {"case": case, "way": "simulate", "seconds": time.monotonic() - begun, "tensors": digest(simulated)}
            )
            begun = time.monotonic()
            there = through_processes(machine, f"case-{number}", changes)
            rows.append(row(case, "processes", time.monotonic() - begun, there, simulated))
            if compose is not None and number == 0:
                rows.append(row(case, "containers", None, exported(compose, folder), simulated))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def simulate(machine: Machine, name: str, changes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the last global model of a simulation."""
    out = machine.folder / name
    machine.popmi("simulate", str(machine.write_config(f"{name}.toml", changes)), "--out", str(out), "--json")
    return last_model(out)


def through_processes(machine: Machine, name: str, changes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the last global model of a run over the network."""
    machine.begin(name, changes)
    machine.until(lambda: machine.ended(name), f"the end of run {name}", 1200)
    return last_model(machine.home.run_folder(name))


def exported(archive: Path, folder: Path) -> dict[str, Tensor]:
    """Return the model in what `popmi server export` wrote."""
    with zipfile.ZipFile(archive) as file:
        name = max(item for item in file.namelist() if item.endswith(".safetensors"))
        file.extract(name, folder / "exported")
    return load_state(folder / "exported" / name)[0]


def last_model(folder: Path) -> dict[str, Tensor]:
    """Return the model of a run folder's last round."""
    return load_state(max((folder / "models").glob("round-*.safetensors")))[0]


def row(
    case: str, way: str, seconds: float | None, state: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return what is told of one way, beside another's model."""
    return {
        "case": case, "way": way, "seconds": seconds, "tensors": digest(state), "equal": digest(state) == digest(other),
        "largest_difference": largest_difference(state, other),
    }  # fmt: skip


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of all tensors: names, types, shapes, bytes; not of the card in the file."""
    told = hashlib.sha256()
    for name in sorted(state):
        array = state[name].numpy()
        told.update(f"{name} {array.dtype} {array.shape}".encode())
        told.update(array.tobytes())
    return told.hexdigest()


def largest_difference(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two numbers at one place; infinity where the tensors are not the same ones."""
    if {name: item.shape for name, item in state.items()} != {name: item.shape for name, item in other.items()}:
        return float("inf")
    return max(float((state[name].double() - other[name].double()).abs().max()) for name in state)


def report(found: Mapping[str, Any]) -> str:
    """Return the whole page."""
    lines = [
        INTRODUCTION.format(**found),
        "| case | way | seconds | sha256 of the tensors | equal to simulate | largest difference |",
        "| --- | --- | ---: | --- | --- | ---: |",
    ]
    for item in found["rows"]:
        same = item.get("equal")
        seconds = "" if item["seconds"] is None else f"{item['seconds']:.0f}"
        lines.append(
            f"| {item['case']} | {item['way']} | {seconds} | `{item['tensors'][:16]}` | "
            f"{'' if same is None else 'yes, bit for bit' if same else 'NO'} | "
            f"{'' if same is None else format(item['largest_difference'], '.3g')} |"
        )
    if not any(item["way"] == "containers" for item in found["rows"]):
        lines.append("\nContainers were not compared here: no export was given with `--compose`.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
