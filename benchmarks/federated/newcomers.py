"""Hospitals that come with models of their own: all five at the start, or one late.

    python benchmarks/federated/newcomers.py --out docs/results/newcomers

*Own models*: five sites trained alone from five seeds (10 epochs each); their models are fused once, 10 rounds follow.
*Late joiner*: four sites have run 5 rounds; the fifth comes with a model of its own, 10 rounds with all five follow.
What differs is how the models become the common start: plain average, OPM, or not at all (starting anew, or from the
four sites' model). The start's (round 0) and every round's exact figures on the sites' validation and test images are
kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cases import BASE
from figures import figures_of, models_of
from launch import finished_run

from popmi_core.checkpoints import load_state, save_state
from popmi_core.config import FuseConfig, overlay, parse_config
from popmi_core.data import locate
from popmi_core.fusion import State, Update, fuse
from popmi_core.matching import describe_model
from popmi_core.models import build_model

ROUNDS = 10
OWN_EPOCHS = 10
EARLY_ROUNDS = 5
LATE_SITE = "rosendahl"
SHOWN = (0, 1, 3, 10)
Start = tuple[str, str, dict[str, Any]]


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for seed in range(arguments.seeds):
        starts = [*own_models(seed, arguments), *late_joiner(seed, arguments)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            rows += [row for row in pool.map(lambda start: followed(start, arguments.runs), starts) if row]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"base": BASE, "runs": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/newcomers"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def own_models(seed: int, arguments: argparse.Namespace) -> list[Start]:
    """Return the starts that five models of five seeds allow."""
    federation = locate("auto", image_size=BASE["model"]["image_size"])
    alone = [lonely(site, number, seed) for number, site in enumerate(federation.sites)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = list(pool.map(lambda described: finished_run(described, arguments.runs), alone))
    found = zip(folders, federation.sites, strict=True)
    updates = [Update(site, *_own(folder, site)) for folder, site in found if folder]
    after = {"seed": 100 * seed, "rounds": ROUNDS}
    starts = [("own models: anew", "fedavg", after)]
    for rule, strategy in {"average": "fedavg", "opm": "opm"}.items():
        path = arguments.runs / f"own-{rule}-{seed}.safetensors"
        # Nobody's basis is the common one: each is matched to the mean of the others.
        anchor = {"anchor": "mean_of_others"} if rule == "opm" else {}
        fused = _fused(rule, updates, updates[0].state, len(federation.classes), seed, **anchor)
        save_state(path, fused, {"rule": rule})
        starts.append((f"own models: {rule}", strategy, {**after, "model": {"weights": str(path)}}))
    return starts


def lonely(site: str, number: int, seed: int) -> dict[str, Any]:
    """Return the description of one site training alone, from a seed of its own."""
    described = {"strategy": "local", "rounds": 1, "sites": [site], "seed": 100 * seed + number}
    return overlay(BASE, {**described, "local": {"epochs": OWN_EPOCHS}})


def late_joiner(seed: int, arguments: argparse.Namespace) -> list[Start]:
    """Return the starts after one site joins four that have trained together."""
    federation = locate("auto", image_size=BASE["model"]["image_size"])
    early = [site for site in federation.sites if site != LATE_SITE]
    together = {"strategy": "fedavg", "rounds": EARLY_ROUNDS, "sites": early, "seed": 100 * seed}
    folder = finished_run(overlay(BASE, {**together, "local": {"epochs": 1}}), arguments.runs)
    own = finished_run(lonely(LATE_SITE, list(federation.sites).index(LATE_SITE), seed), arguments.runs)
    if folder is None or own is None:
        return []
    common, _ = load_state(folder / "models" / f"round-{EARLY_ROUNDS:03d}.safetensors")
    examples = sum(_examples(folder).values())
    updates = [Update("common", common, examples), Update(LATE_SITE, *_own(own, LATE_SITE))]
    starts = []
    models: dict[str, Callable[[], State]] = {
        "discarded": lambda: common,
        "average": lambda: _fused("average", updates, common, len(federation.classes), seed),
        "opm": lambda: _fused("opm", updates, common, len(federation.classes), seed),
    }
    for rule, made in models.items():
        path = arguments.runs / f"late-{rule}-{seed}.safetensors"
        save_state(path, made(), {"rule": rule})
        after = {"seed": 100 * seed, "rounds": ROUNDS, "model": {"weights": str(path)}}
        starts.append((f"late joiner: {rule}", "opm" if rule == "opm" else "fedavg", after))
    return starts


def followed(start: Start, runs: Path) -> dict[str, Any] | None:
    """Return every round's figures of the run that goes on from a start."""
    name, strategy, changes = start
    folder = finished_run(overlay(BASE, {"strategy": strategy, "local": {"epochs": 1}, **changes}), runs)
    if folder is None:
        return None
    rounds = [{"round": number, **figures_of(folder, number)} for number in models_of(folder)]
    if begun := changes.get("model"):
        rounds.insert(0, {"round": 0, **figures_of(folder, weights=Path(begun["weights"]))})
    print(json.dumps({"start": name, "val_auroc": [item["val_auroc"] for item in rounds]}), flush=True)
    return {"start": name, "seed": changes["seed"] // 100, "rounds": rounds}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return test AUROC after some rounds by start, and how early each is where the simple ones end."""
    lines = [
        "# Hospitals that come with models of their own\n\n"
        "Printed by `python benchmarks/federated/newcomers.py --out docs/results/newcomers`; every round is in "
        "`newcomers.json`.\n\n"
        "Five real dermoscopy sites, 32 px, `popmi_vit_nano` (0.46 M). *Own models*: each site has trained "
        f"{OWN_EPOCHS} epochs alone from a seed of its own; the five models are fused once and {ROUNDS} rounds of one "
        f"epoch follow (*anew*: from random weights). *Late joiner*: four sites have run {EARLY_ROUNDS} rounds, the "
        f"fifth ({LATE_SITE}) comes with {OWN_EPOCHS} epochs of its own; the common model goes on without that model "
        "(*discarded*) or fused with it, weighted by images. Rounds are fused by the rule of the row (*anew* and "
        "*discarded*: plain average).\n\n"
        f"Test AUROC, median of seeds (lowest to highest). Last columns: the first of {ROUNDS} rounds, by seed, in "
        "which validation AUROC reaches what plain averaging (its own row included), and what *anew* or *discarded*, "
        "has after the last one.\n",
        "| start | "
        + " | ".join(f"after {shown}" if shown else "fused" for shown in SHOWN)
        + " | rounds to plain | rounds to anew |",
        "| --- |" + " ---: |" * (len(SHOWN) + 2),
    ]
    for name in dict.fromkeys(row["start"] for row in rows):
        mine = [row for row in rows if row["start"] == name]
        cells = [_cell([at for row in mine for at in _at(row, shown)]) for shown in SHOWN]
        for other in (("average",), ("anew", "discarded")):
            ends = {
                row["seed"]: row["rounds"][-1]["val_auroc"]
                for row in rows
                if row["start"].partition(": ")[0] == name.partition(": ")[0] and row["start"].endswith(other)
            }
            cells.append(", ".join(_needed(row, ends[row["seed"]]) for row in mine if row["seed"] in ends))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _fused(rule: str, updates: list[Update], reference: State, classes: int, seed: int, **options: str) -> State:
    config = parse_config({**BASE, "seed": seed})
    symmetry = describe_model(build_model(config.model, classes, seed=seed))
    return fuse(rule, updates, reference=reference, symmetry=symmetry, config=FuseConfig(), **options).state


def _own(folder: Path, site: str) -> tuple[State, int]:
    state, _ = load_state(folder / "state" / "round-001.safetensors")
    prefix = f"site/{site}/"
    mine = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return mine, _examples(folder)[site]


def _examples(folder: Path) -> dict[str, int]:
    from server.store import RunReader

    with RunReader(folder / "record.sqlite") as reader:
        found = {row.site: row.num_examples for row in reader.sites(reader.run().id) if row.num_examples}
    return {site: int(count) for site, count in found.items()}


def _at(row: dict[str, Any], number: int) -> list[float]:
    return [float(item["test_auroc"]) for item in row["rounds"] if item["round"] == number]


def _needed(row: dict[str, Any], goal: float) -> str:
    reached = [item["round"] for item in row["rounds"] if item["val_auroc"] >= goal]
    return str(min(reached)) if reached else f"> {ROUNDS}"


def _cell(values: list[float]) -> str:
    return "-" if not values else f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
