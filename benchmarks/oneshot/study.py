"""One-shot fusion of independently trained models: OPM and every rival on the same parents.

    python benchmarks/oneshot/study.py --out docs/results/oneshot

writes oneshot.json (every result) and oneshot.md (medians over all pairs or fours, lowest and highest). Parents and
results are kept below --runs by a hash of what they depend on, so a study that was stopped goes on. With --from-json
the page is written from the json file alone. Choices are made on validation images, methods look at training images,
every figure is of test images.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignments import RESTARTS, SETTINGS, Aligned
from cases import ON_PATH, UNLABELLED, Case, State, all_cases
from methods import METHODS, Method, apply_method, available
from parents import ARCHITECTURES, load_dataset, parent_path, recipes, train
from tables import report
from verdicts import DECIDES

from popmi_core.fusion.dispatch import fuse
from popmi_core.fusion.ensemble import mean_probabilities
from popmi_core.fusion.path import POINTS, evaluate, on_line
from popmi_core.fusion.update import Update

# Fixed beforehand: a third of the parents' highest rate, because the start is a trained model.
EPOCH_RATE = 1 / 3


def main() -> None:
    arguments = parse_arguments()
    if not arguments.from_json:
        text = "[\n" + ",\n".join(json.dumps(row) for row in all_results(arguments)) + "\n]\n"
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".json").write_text(text)
    rows = json.loads(arguments.out.with_suffix(".json").read_text())
    arguments.out.with_suffix(".md").write_text(report(rows))


def all_results(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of every case; what is not kept yet is computed now."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for dataset in arguments.datasets.split(","):
        sites = load_dataset(dataset)
        for architecture in arguments.architectures.split(","):
            wanted = recipes(dataset, architecture, arguments.seeds)
            if arguments.kept_only:
                wanted = [recipe for recipe in wanted if parent_path(recipe, arguments.runs).exists()]
                wanted = wanted[: len(wanted) // len(sites) * len(sites)]
            cases = list(all_cases(dataset, architecture, sites, arguments.runs, wanted=wanted))
            for size in (2, 4):
                for case in [case for case in cases if len(case.parents) == size][: arguments.cases]:
                    rows.extend(results(case, arguments))
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="blood,dermoscopy")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--methods", default="", help="compute only these (split by ;), tell all kept results")
    parser.add_argument("--seeds", type=int, help="default: as parents.py says")
    parser.add_argument("--cases", type=int, default=None, help="at most so many pairs and so many fours each")
    parser.add_argument("--kept-only", action="store_true", help="compute nothing; tell what is there")
    parser.add_argument("--from-json", action="store_true", help="compute nothing; print the page from OUT.json again")
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def results(case: Case, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a method; what is not kept yet is computed now."""
    wanted = set(filter(None, arguments.methods.split(";")))
    aligned, rows = Aligned(case), []
    for method in METHODS:
        path = arguments.runs / "results" / f"{key(case, method)}.json"
        missing = not path.exists() and not arguments.kept_only and (not wanted or method.name in wanted)
        if missing and available(method, case):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                row = measure(case, method, aligned)
            except Exception as error:
                print(f"{case.name} {method.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            path.write_text(json.dumps(row))
            print(json.dumps(row), flush=True)
        if path.exists():
            rows.append(json.loads(path.read_text()))
    return rows


def key(case: Case, method: Method) -> str:
    """Return the name under which a result is kept: a hash of the parents' recipes, the method and the measurement."""
    aligning = [RESTARTS, *SETTINGS.get(method.align, [])] if method.align else []
    described = [[p.recipe.name for p in case.parents], method.described(), ON_PATH, UNLABELLED, POINTS, *aligning]
    if method.epoch and len(case.parents) > 2:
        described.append(EPOCH_RATE)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def measure(case: Case, method: Method, aligned: Aligned) -> dict[str, Any]:
    """Fuse, then measure the fused model, its line and, for fours, what one epoch makes of it."""
    row: dict[str, Any] = {
        "dataset": case.dataset, "architecture": case.architecture, "n": len(case.parents),
        "parents": case.members, "method": method.name, "side": method.side, "looks": method.looks,
    }  # fmt: skip
    each = [case.figures(probabilities) for probabilities in case.parents_probabilities]
    row["best_parent"] = max(figures[DECIDES[case.dataset]] for figures in each)
    row["parents_nll"] = [figures["nll"] for figures in each]
    if method.rule == "ensemble":
        mean = mean_probabilities((1.0, answer) for answer in case.parents_probabilities)
        return {**row, **case.figures(mean), "seconds": 0.0}
    outcome = apply_method(method, case, aligned)
    state = outcome.state
    row |= {**case.figures(case.probabilities(state)), "seconds": outcome.seconds, "chosen": outcome.chosen}
    if outcome.partner is not None:
        for split in case.splits_on_path:
            row[f"barrier_{split}"] = round(barrier(case, outcome.partner, split), 5)
    if case.has_batchnorm:
        state = case.repaired(state)
        row["repaired"] = case.figures(case.probabilities(state))
        if outcome.partner is not None:
            row["barrier_repaired"] = round(barrier(case, outcome.partner, "test", repair=True), 5)
    if method.epoch and len(case.parents) > 2:
        row["after_epoch"] = case.figures(case.probabilities(one_epoch(case, state)))
    return row


def barrier(case: Case, partner: State, split: str, *, repair: bool = False) -> float:
    """Return the highest rise (nats) of the loss on the line above the chord of the *parents'* losses.

    The line runs from the first parent to the aligned second. An exact alignment leaves the second parent's loss as
    it was; where a soft one does not, that loss counts too. With ``repair`` BatchNorm is measured anew at every point
    between the ends.
    """
    shares, data = np.linspace(0.0, 1.0, POINTS), case.on_path[split]
    line = []
    for share in shares:
        state = on_line(case.states[0], partner, float(share))
        state = case.repaired(state) if repair and 0 < share < 1 else state
        line.append(evaluate(case.model, state, data)[0])
    first, second = case.parents_losses[split]
    return max(0.0, float((np.array(line) - ((1 - shares) * first + shares * second)).max()))


def one_epoch(case: Case, state: State) -> State:
    """Train a copy at every parent's site for one epoch of its own images and average the copies plainly."""
    updates = []
    for member, (parent, site) in enumerate(zip(case.parents, case.data, strict=True)):
        rate = EPOCH_RATE * parent.recipe.learning_rate
        recipe = replace(parent.recipe, images=len(site.train), learning_rate=rate, seed=1000 + member)
        case.model.load_state_dict(dict(state))
        train(case.model, site.train, recipe)
        own = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
        updates.append(Update(case.members[member], own, len(site.train)))
    return fuse("average", updates, reference=state).state


if __name__ == "__main__":
    main()
