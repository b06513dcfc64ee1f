"""`kill -9` at random moments of one run: what is lost, how long until the next round is done, is the model the same.

    python benchmarks/faults/kills.py --out docs/results/kills

Every part of server and site is killed in turn, in an order and at moments that follow from --seed. What a service
manager would start again (`popmi server up`, `popmi site run`) is started again after one second. At the end the run's
models are compared, round by round, with those of the same description through `popmi simulate`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from stage import BAD, GOOD, LIGHT, Machine

from popmi_core.checkpoints import load_state
from popmi_core.errors import PopmiError
from server.store import RoundRow, SiteRow

SITES = (GOOD, BAD)
PARTS = (
    *("superlink", "server app", "runner", "gateway", "keeper", "server"),
    *(f"{GOOD} node", f"{GOOD} gate", f"{GOOD} worker", GOOD),
)
NAMES = {
    "superlink": "SuperLink", "runner": "server app's runner", "server": "whole `popmi server up`",
    f"{GOOD} node": "a site's node", f"{GOOD} gate": "a site's gate", f"{GOOD} worker": "a site's worker",
    GOOD: "whole `popmi site run`",
}  # fmt: skip
RUN = "killed"
INTRODUCTION = """# Killed at {count} moments

Printed by `python benchmarks/faults/kills.py --out docs/results/kills` (seed {seed}); every figure is in `kills.json`.
One run of {sites} sites as processes, SIGKILL without warning, moments drawn over a round and a half. *Rounds lost*:
rounds that were finished and are no more, plus the round in flight if it was begun anew. *Next round done*: seconds
from the kill to the end of the next round, of whatever sites; undisturbed, a round takes {usual:.1f} s here ({cores}
cores, load average {load} when begun, {load_end} at the end). {then}
"""
TRAINED = """*Made without*: rounds after the kill
in which a site's training was not used. *All train again*: seconds from the kill to the end of the first round that was
begun after it and in which every site trained (undisturbed: the rest of a round and a whole one); the next kill comes
only then."""
NOT_LOOKED_AT = """When sites trained again was not
measured: the next kill came after the next round, whoever made it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    given = parser.parse_args()
    told = given.out.with_suffix(".json")
    if not given.from_json:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            killed(Path(folder), given.kills, given.seed, told)
    given.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def order(kills: int, seed: int) -> list[str]:
    """Return whom to kill, one after the other: every part as often as any other, in a drawn order."""
    parts = [PARTS[number % len(PARTS)] for number in range(kills)]
    random.Random(seed).shuffle(parts)
    return parts


def killed(folder: Path, kills: int, seed: int, told: Path) -> None:
    """Run, kill, and write down what is known after every kill."""
    moments = random.Random(seed + 1)
    found: dict[str, Any] = {
        "seed": seed, "count": kills, "sites": len(SITES), "cores": os.cpu_count(), "rows": [],
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    with Machine(folder, {site: f"phantom:{site}" for site in SITES}, {**LIGHT, "rounds": 1000}) as machine:
        machine.set_up()
        machine.all_up()
        machine.begin(RUN)
        machine.until(lambda: machine.done(RUN) >= 3, "three undisturbed rounds", 900)
        found["usual"] = usual_seconds(machine)
        for part in order(kills, seed):
            time.sleep(moments.uniform(0.0, 1.5 * found["usual"]))
            found["rows"].append(one(machine, part))
            told.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps(found["rows"][-1]), flush=True)
        machine.popmi("server", "stop")
        machine.until(lambda: machine.process("server app") is None, "the run at rest", 300)
        found |= compared(machine) | {"load_end": round(os.getloadavg()[0], 1)}
        told.write_text(json.dumps(found, indent=1) + "\n")


def usual_seconds(machine: Machine) -> float:
    """Return the median seconds from one round's end to the next one's, without the first."""
    with machine.record(RUN) as reader:
        ends = [row.finished for row in reader.rounds(reader.run().id) if row.finished is not None]
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def one(machine: Machine, part: str) -> dict[str, Any]:
    """Kill one process, wait for the end of the next round, and until every site trains again."""
    machine.until(lambda: machine.process(part), f"a process {part}", 300)
    before = machine.done(RUN)
    under_way = bool(seen(machine, before + 1)[0])
    moment = time.time()
    machine.kill(part)
    if part in ("server", GOOD):
        time.sleep(1.0)
        machine.up() if part == "server" else machine.run_site(part)
    lowest = before
    row: dict[str, Any] = {"part": part, "after_round": before}
    end = time.monotonic() + 600.0
    while (now := machine.done(RUN)) <= before:
        # A record that cannot be read at this moment reads as nothing.
        lowest = min(lowest, now or lowest)
        # A run that *failed* over a lost connection is started again by the keeper; only the clock says that it is not.
        if time.monotonic() > end:
            return row | {"seconds": None, "lost": None, "again": None, "outcomes": machine.ended(RUN) or "no round"}
        time.sleep(0.1)
    rounds, trained = machine.until(
        lambda: (found := seen(machine, before + 1))[0] and found, "a record that can be read", 300
    )
    next_round = next(item for item in rounds if item.server_round == before + 1)
    outcomes = {item.site: item.outcome for item in trained if item.server_round == before + 1}
    # A kill between two rounds begins none anew.
    again = under_way and next_round.started > moment
    seconds = (next_round.finished or time.time()) - moment
    row |= {"seconds": seconds, "lost": before - lowest + again, "again": again, "outcomes": outcomes}
    return row | until_all_train(machine, before, moment)


def until_all_train(machine: Machine, before: int, moment: float) -> dict[str, Any]:
    """Return how many rounds were made without a site, and the seconds until all trained again, None if never."""
    end = time.monotonic() + 600.0
    while True:
        found = without(*seen(machine, before + 1), moment)
        if found["trained_seconds"] is not None or time.monotonic() > end:
            return found
        time.sleep(0.5)


def without(rounds: Iterable[RoundRow], trained: Iterable[SiteRow], moment: float) -> dict[str, Any]:
    """Return which rounds after a kill were made without a site, and when the first was made with all of them.

    Args:
        rounds: The record's rounds after the last one that was done before the kill.
        trained: What sites did in them when asked to train.
        moment: The kill, in seconds since 1970. A round that was begun before it may hold training from before it.
    """
    outcomes = defaultdict[int, dict[str, str]](dict)
    for row in trained:
        outcomes[row.server_round][row.site] = row.outcome
    missing = []
    for row in sorted(rounds, key=lambda item: item.server_round):
        if row.finished is None:
            continue
        told = outcomes[row.server_round]
        if any(told.get(site) != "ok" for site in SITES):
            missing.append(row.server_round)
        elif row.started > moment:
            return {"without": missing, "trained_seconds": row.finished - moment}
    return {"without": missing, "trained_seconds": None}


def seen(machine: Machine, since: int) -> tuple[tuple[RoundRow, ...], list[SiteRow]]:
    """Return the record's rounds, and the sites' training in them, from a round on; nothing where it cannot be read."""
    with contextlib.suppress(PopmiError, SQLAlchemyError), machine.record(RUN) as reader:
        run = reader.run().id
        # Rounds first: of one that is seen to be finished, all sites have their rows then.
        rounds = reader.rounds(run, since=since)
        return rounds, [row for row in reader.sites(run, since=since) if row.phase == "train"]
    return (), []


def compared(machine: Machine) -> dict[str, Any]:
    """Return whether the models are those of an undisturbed run, and which round differs first."""
    last = machine.done(RUN)
    out = machine.folder / "undisturbed"
    described = machine.write_config("undisturbed.toml", {**LIGHT, "rounds": last, "sites": list(SITES)})
    machine.popmi("simulate", str(described), "--out", str(out), "--json", seconds=3600)
    differing = [number for number in range(1, last + 1) if not same(machine.home.run_folder(RUN), out, number)]
    with machine.record(RUN) as reader:
        run = reader.run().id
        missed = sorted({row.server_round for row in reader.sites(run) if row.phase == "train" and row.outcome != "ok"})
        starts = [row.text for row in reader.events(run, last=1000)]
    return {"rounds": last, "first_difference": differing[0] if differing else None, "missed": missed, "diary": starts}


def same(one_run: Path, other: Path, server_round: int) -> bool:
    """Return whether two runs' models of a round are equal, bit for bit."""
    first, second = (
        load_state(folder / "models" / f"round-{server_round:03d}.safetensors")[0] for folder in (one_run, other)
    )
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def report(found: Mapping[str, Any]) -> str:
    """Return the whole page."""
    rows = found["rows"]
    then = TRAINED if any("without" in row for row in rows) else NOT_LOOKED_AT
    lines = [INTRODUCTION.format(**{"load_end": "?", **found, "then": then})]
    lines += [
        "| killed | times | rounds lost, most | next round done, median | worst | round in flight begun anew | "
        "made without a site, most | all train again, median | worst |"
    ]
    lines += ["| --- |" + " ---: |" * 8]
    for part in [*dict.fromkeys(row["part"] for row in rows), "all"]:
        lines.append(line(part, [row for row in rows if part in ("all", row["part"])]))
    if "rounds" in found:
        lines += ["", verdict(found), "", missed_rounds(found)]
    return "\n".join(lines) + "\n"


def line(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line of the table."""
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    never = len(rows) - len(seconds)
    if not seconds:
        return f"| {NAMES.get(part, part)} | {len(rows)} | | never | | | | | |"
    return (
        f"| {NAMES.get(part, part)} | {len(rows)} | {max(row['lost'] or 0 for row in rows)} | "
        f"{statistics.median(seconds):.1f} s | {max(seconds):.1f} s{f', {never} never' if never else ''} | "
        f"{sum(bool(row['again']) for row in rows)} | {training_again(rows)} |"
    )


def training_again(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells on rounds made without a site and on the time until all trained again."""
    measured = [row for row in rows if "without" in row]
    if not measured:
        return "not measured | not measured | not measured"
    times = [row["trained_seconds"] for row in measured if row["trained_seconds"] is not None]
    never = len(measured) - len(times)
    most = max(len(row["without"]) for row in measured)
    if not times:
        return f"{most} | never | {never} never"
    return f"{most} | {statistics.median(times):.1f} s | {max(times):.1f} s{f', {never} never' if never else ''}"


def missed_rounds(found: Mapping[str, Any]) -> str:
    """Return how many of a run's rounds were made without a site, and how many of them on end."""
    missed = found["missed"]
    if not missed:
        return f"All {found['rounds']} rounds were made with every site."
    on_end = [len(list(group)) for _, group in itertools.groupby(enumerate(missed), lambda item: item[1] - item[0])]
    return (
        f"{len(missed)} of {found['rounds']} rounds were made without a site, at most {max(on_end)} on end "
        f"({', '.join(map(str, missed))}): what it had trained, or would have, is not in them."
    )


def verdict(found: Mapping[str, Any]) -> str:
    """Return what is said of the model."""
    first, missed = found["first_difference"], found["missed"]
    if first is None:
        return f"All {found['rounds']} rounds' models are those of the undisturbed run, bit for bit."
    why = (
        f"a site had no answer in round {missed[0]}, so that round was made without it"
        if missed and missed[0] <= first
        else "NO site was missing before that: this is not explained"
    )
    return f"The first of {found['rounds']} rounds whose model differs from the undisturbed run's is {first}: {why}."


if __name__ == "__main__":
    main()
