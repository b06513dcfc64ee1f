"""One description, one seed, the same sites: through `popmi simulate`, through processes, and through containers.

    python benchmarks/federation/equal.py --out docs/results/equal                        # simulate and processes
    python benchmarks/federation/equal.py --describe FOLDER                               # the containers' run
    python benchmarks/federation/equal.py --out docs/results/equal --compose EXPORT.zip   # all three

The last global model's tensors are hashed (names, types, shapes, bytes); where hashes differ, the largest difference is
told and what is known of its cause. --describe writes the first case's description and prints the commands that make
EXPORT.zip in containers; an export of another description is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from machine import TINY, Machine
from torch import Tensor

from popmi_core.checkpoints import load_state
from popmi_core.config import RunConfig
from server.store import RunReader

SITES = ("phantom_polarised", "phantom_ruler", "phantom_slide")
PLACES = {"phantom_polarised": 2, "phantom_ruler": 3, "phantom_slide": 4}
"""The containers' numbers in docker-compose.yml."""
PATIENT = {"timeout": 900.0, "limits": {"join": 900.0}}
"""On a busy machine five containers take minutes to come up: no site may be left out for that."""
FAST = {"batch_size": 8, "learning_rate": 0.02, "epochs": 3}
"""So far apart come the sites' models that matching finds something to move."""
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "opm": {"strategy": "opm", "local": FAST},
    "fedavg": {"strategy": "fedavg", "local": FAST},
    "opm_regmean, gate with opm_soup": {
        "strategy": "opm",
        "match": {"method": "none"},
        "fuse": {"rule": "opm_regmean", "gate": ["opm_soup"]},
        "local": FAST,
    },
    "control variates, momentum": {
        "strategy": "opm",
        "local": {"batch_size": 32, "objective": "control_variates"},
        "server_optimizer": {"name": "momentum"},
    },
}
ONE_THREAD = """# One thread a process, as in equal.py's other ways: floating-point sums depend on their order.
services:
{services}
"""
COMMANDS = """# Run at the top of the repository, with a container engine:
export RUN_FILE={run} SITES="{sites}" COMPOSE_ENV_FILES=/dev/null
compose="docker compose --project-name popmi-equal -f docker-compose.yml -f {threads}"
$compose up --build --detach runner keeper {services}
until $compose exec -T keeper popmi server status --json | grep -E '"state": "(finished|failed)'; do sleep 5; done
$compose exec -T keeper popmi server export compose /home/popmi/server/equal.zip
$compose cp keeper:/home/popmi/server/equal.zip {folder}/equal.zip
$compose down --volumes
python benchmarks/federation/equal.py --rounds {rounds} --out docs/results/equal --compose {folder}/equal.zip
"""
INTRODUCTION = """# Is it the same model, however it was trained?

Printed by `python benchmarks/federation/equal.py --out docs/results/equal [--compose EXPORT.zip]`; every figure is in
`equal.json`. One description and seed, {sites} phantom sites, {rounds} rounds, popmi_vit_micro at 32 pixels,
one thread a process: `popmi simulate` in one process; `popmi server up` with `popmi site run` (TLS, keys, gates,
forked workers); `docker compose up` (`equal.py --describe` prints its commands). Compared are the tensors of the last
global model.
*Moved*: layers, counted for every site in every round, that matching put into another basis, of those it looked at;
*-*: nothing was matched before the fusion (a rule that matches by itself keeps no such count).
Seconds are this machine's, beside whatever else it did: no comparison.
*Why*: what differs between the two runs' records, where the models do.
"""
UNKNOWN = "not known: same versions, threads and machine in both records, and every site in every round"


@dataclass(frozen=True)
class Trained:
    """What one way of running came to.

    Attributes:
        state: The last global model.
        environment: What the record says of the machine that averaged.
        missing: Rounds in which a site's training was not used, in words.
        moved: Layers of a site in a round that matching put into another basis, and all that it looked at.
    """

    state: Mapping[str, Tensor]
    environment: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    moved: tuple[int, int] = (0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=";".join(DESCRIPTIONS), help="with ; between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compose", type=Path, help="export of the first case's run in containers")
    parser.add_argument("--describe", type=Path, metavar="FOLDER", help="write the containers' run there, run nothing")
    parser.add_argument("--add", action="store_true", help="keep what OUT.json holds of other cases")
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    if arguments.describe is not None:
        print(described_for_compose(arguments.describe, arguments.cases.split(";")[0], arguments.rounds), end="")
        return
    if arguments.out is None:
        parser.error("--out: where the page is to be written, or --describe")
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


def description(case: str, rounds: int) -> dict[str, Any]:
    """Return a case's whole description, the same for every way of running."""
    return {**TINY, **PATIENT, "rounds": rounds, **DESCRIPTIONS[case], "sites": list(SITES)}


def described_for_compose(folder: Path, case: str, rounds: int) -> str:
    """Write what a run of a case in containers needs into a folder, and return the commands that make its export."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    run, threads = folder / "run.toml", folder / "one-thread.yml"
    run.write_text(tomli_w.dumps(description(case, rounds)), encoding="utf-8")
    # A container's user is another one.
    run.chmod(0o644)
    numbered = [f"site-{number}" for number in PLACES.values()]
    services = [f'  {name}: {{environment: {{OMP_NUM_THREADS: "1"}}}}' for name in ("runner", *numbered)]
    threads.write_text(ONE_THREAD.format(services="\n".join(services)), encoding="utf-8")
    invited = " ".join(f"{site}:{number}" for site, number in PLACES.items())
    return COMMANDS.format(
        run=run, threads=threads, folder=folder, rounds=rounds, sites=invited, services=" ".join(numbered)
    )


def compared(folder: Path, cases: list[str], rounds: int, compose: Path | None) -> list[dict[str, Any]]:
    """Return one row a case and way of running; all cases go through one server, one after the other."""
    rows = []
    # Before hours of work: an export of another run is of no use.
    there = None if compose is None else exported(compose, folder, description(cases[0], rounds))
    with Machine(folder, {site: f"phantom:{site}" for site in SITES}) as machine:
        machine.set_up()
        machine.all_up()
        for number, case in enumerate(cases):
            described = description(case, rounds)
            begun = time.monotonic()
            simulated = simulate(machine, f"simulated-{number}", described)
            rows.append(
                {
                    "case": case,
                    "way": "simulate",
                    "seconds": time.monotonic() - begun,
                    "tensors": digest(simulated.state),
                    "moved": simulated.moved,
                }
            )
            begun = time.monotonic()
            networked = through_processes(machine, f"case-{number}", described)
            rows.append(row(case, "processes", time.monotonic() - begun, networked, simulated))
            print(json.dumps(rows[-1]), flush=True)
            if there is not None and number == 0:
                rows.append(row(case, "containers", None, there, simulated))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def simulate(machine: Machine, name: str, described: Mapping[str, Any]) -> Trained:
    """Return what a simulation came to."""
    out = machine.folder / name
    machine.popmi(
        "simulate", str(machine.write_config(f"{name}.toml", described)), "--out", str(out), "--json", seconds=3600
    )
    return of_folder(out)


def through_processes(machine: Machine, name: str, described: Mapping[str, Any]) -> Trained:
    """Return what a run over the network came to."""
    machine.begin(name, described)
    machine.until(lambda: machine.ended(name), f"the end of run {name}", 1200)
    return of_folder(machine.home.run_folder(name))


def of_folder(folder: Path) -> Trained:
    """Return what lies in a run's folder."""
    with RunReader(folder / "record.sqlite") as reader:
        run = reader.run()
        rows = [{"server_round": item.server_round, "site": item.site, "phase": item.phase, "outcome": item.outcome}
                for item in reader.sites(run.id)]  # fmt: skip
        moved = counted([item.identity for item in reader.matches(run.id)])
    state = load_state(max((folder / "models").glob("round-*.safetensors")))[0]
    return Trained(state, run.environment, left_out(rows), moved)


def exported(archive: Path, folder: Path, described: Mapping[str, Any]) -> Trained:
    """Return what `popmi server export` wrote of a run that was described so.

    Raises:
        ValueError: If the run was described otherwise, or did not finish.
    """
    with zipfile.ZipFile(archive) as file:
        config, run = tomllib.loads(file.read("config.toml").decode()), json.loads(file.read("record/run.json"))
        rows = json.loads(file.read("record/sites.json"))
        moved = counted([item["identity"] for item in json.loads(file.read("record/matches.json"))])
        name = max(item for item in file.namelist() if item.endswith(".safetensors"))
        file.extract(name, folder / "exported")
    wanted = RunConfig.model_validate(dict(described)).model_dump(mode="json", exclude_none=True)
    if others := list(differences(config, wanted)):
        raise ValueError(
            f"{archive} is of a run with another description: {'; '.join(others)}. Make it by the commands that "
            "`equal.py --describe FOLDER` prints, with the same --cases and --rounds."
        )
    if run["status"] != "finished":
        raise ValueError(f"{archive}: its run is {run['status']}, expected finished. Export it once it has ended.")
    state = load_state(folder / "exported" / name)[0]
    return Trained(state, run["environment"], left_out(rows), moved)


def left_out(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return whose training was not used in which round."""
    found = [item for item in rows if item["phase"] == "train" and item["outcome"] != "ok"]
    return tuple(f"round {item['server_round']} without {item['site']} ({item['outcome']})" for item in found)


def counted(identities: Sequence[bool]) -> tuple[int, int]:
    """Return how many layers moved, of how many that matching looked at."""
    return identities.count(False), len(identities)


def differences(got: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Return every key in which two descriptions differ, with both values."""
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        for key in sorted({*got, *expected}):
            yield from differences(got.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif got != expected:
        yield f"{name} is {got!r}, expected {expected!r}"


def row(case: str, way: str, seconds: float | None, there: Trained, reference: Trained) -> dict[str, Any]:
    """Return what is told of one way, beside another's model."""
    equal = digest(there.state) == digest(reference.state)
    return {
        "case": case, "way": way, "seconds": seconds, "tensors": digest(there.state), "moved": there.moved,
        "equal": equal, "largest_difference": largest_difference(there.state, reference.state),
        "why": "" if equal else why(there, reference),
    }  # fmt: skip


def why(there: Trained, reference: Trained) -> str:
    """Return what the records know of why two models differ: sites that were left out, threads, versions, machines."""
    known = [*there.missing, *(f"simulate: {item}" for item in reference.missing)]
    known += differences(there.environment, reference.environment)
    return "; ".join(known) or UNKNOWN


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
        "| case | way | seconds | moved | sha256 of the tensors | equal to simulate | largest difference | why |",
        "| --- | --- | ---: | ---: | --- | --- | ---: | --- |",
    ]
    for item in found["rows"]:
        same = item.get("equal")
        moved = "{} of {}".format(*item["moved"]) if item.get("moved", (0, 0))[1] else "-"
        seconds = "" if item["seconds"] is None else f"{item['seconds']:.0f}"
        lines.append(
            f"| {item['case']} | {item['way']} | {seconds} | {moved} | `{item['tensors'][:16]}` | "
            f"{'' if same is None else 'yes, bit for bit' if same else 'NO'} | "
            f"{'' if same is None else format(item['largest_difference'], '.3g')} | {item.get('why', '')} |"
        )
    if not any(item["way"] == "containers" for item in found["rows"]):
        lines.append("\nContainers were not compared here: no export was given with `--compose`.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
