"""How many sweeps over all spaces a descent needs: the fused pair after each of them, on validation images.

    python benchmarks/oneshot/sweeps.py --out docs/results/sweeps

Pairs of ViTs (d = 64) of different random starts on BloodMNIST content, matched by weights alone and averaged as
``opm`` does. Large models, which are matched in float32, stop at the first sweep that takes off less than ``SHARE`` of
the distance; *where large models stop* says what that would do here.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import json
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from cases import Case
from parents import get_parent, load_dataset, recipes

from popmi_core.data import ImageSet
from popmi_core.fusion.dispatch import fuse
from popmi_core.fusion.path import evaluate
from popmi_core.fusion.update import Update
from popmi_core.matching import Matcher
from popmi_core.matching.descent import SETTLED_LARGE as SHARE

ARCHITECTURE, SEEDS = "popmi_vit_64", 4
SWEEPS = (1, 2, 3, 4, 5, 6, 8, 10, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sites = load_dataset("blood")
    parents = [get_parent(recipe, sites["all"], arguments.runs) for recipe in recipes("blood", ARCHITECTURE, SEEDS)]
    rows = []
    for pair in combinations(parents, 2):
        rows += rows_of(Case("blood", ARCHITECTURE, list(pair), [sites["all"]] * 2), sites["all"].val)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"share": SHARE, "rows": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows))


def rows_of(case: Case, data: ImageSet) -> list[dict[str, Any]]:
    """Return one row a number of sweeps: squared distance, loss (nats) and accuracy of the fused pair."""
    rows = []
    first, second = case.states
    for sweeps in SWEEPS:
        found = Matcher(first, case.symmetry, sweeps=sweeps).match(second)
        updates = [Update("a", first, 1), Update("b", found.state, 1)]
        fused = fuse("adaptive_circuit", updates, reference=first, symmetry=case.symmetry)
        loss, accuracy = evaluate(case.model, fused.state, data)
        row = {"pair": "+".join(case.members), "sweeps": sweeps, "distances": found.distances}
        rows.append({**row, "loss": round(loss, 4), "accuracy": round(accuracy, 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def stop_of(distances: list[float]) -> int:
    """Return the number of sweeps after which a large model's descent would have ended."""
    for sweep in range(1, len(distances)):
        if distances[sweep - 1] - distances[sweep] <= SHARE * distances[sweep - 1]:
            return sweep + 1
    return len(distances)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the markdown table: medians over pairs (lowest to highest), and the row of the stop."""
    by_pair: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_pair.setdefault(row["pair"], {})[row["sweeps"]] = row
    stops = {pair: stop_of(list(mine[max(SWEEPS)]["distances"])) for pair, mine in by_pair.items()}
    lines = [
        "Printed by `python benchmarks/oneshot/sweeps.py --out docs/results/sweeps`: pairs of ViTs (d = 64) of",
        "different starts on BloodMNIST content, matched by weights, fused as `opm` does, judged on validation images.",
        f"Median over {len(by_pair)} pairs (lowest to highest); *distance*: squared, as a share of the first sweep's.",
        "",
        "| sweeps | distance | loss (nats) | accuracy |",
        "| ---: | ---: | ---: | ---: |",
    ]
    lines += [_line(str(sweeps), [mine[sweeps] for mine in by_pair.values()]) for sweeps in SWEEPS]
    stopped = [mine[max(s for s in SWEEPS if s <= stops[pair])] for pair, mine in by_pair.items()]
    lines += [_line("where large models stop", stopped), ""]
    lines += [
        f"Large models, matched in float32, stop after the first sweep that takes off less than {SHARE:.1%} of the",
        f"distance: here after {', '.join(str(stops[pair]) for pair in sorted(stops))} sweeps (nearest row told).",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    nearer = [row["distances"][-1] / row["distances"][0] for row in rows]
    cells = [_cell(values) for values in (nearer, [r["loss"] for r in rows], [r["accuracy"] for r in rows])]
    return f"| {name} | {' | '.join(cells)} |"


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
