"""One round from the same updates, fused in several ways: what turning streams does to sites that share a start.

    python benchmarks/federated/one_round.py --out docs/results/one_round

From rounds of a plain average (case "fedavg 1 x 20"), five sites train; then their models are averaged as they came
(*average*), with every site's stream first turned to the global model's by its own best rotation (*streams turned*),
with heads averaged as products (*circuit*), and as the strategy ``opm`` does it. Figures: loss in nats and AUROC over
the sites' validation images; no choice was made on them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES
from launch import finished_run

from client.train import train_locally
from popmi_core.checkpoints import load_state
from popmi_core.config import overlay, parse_config
from popmi_core.data import load_site, locate
from popmi_core.fusion import State, Update, fuse
from popmi_core.matching import Symmetry, apply, describe_model
from popmi_core.matching.blocks import StreamBlock
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.elements import Element
from popmi_core.metrics import auroc_macro_ovr
from popmi_core.models import build_model, exchanged_state, load_exchanged, normalise, predict
from popmi_core.protocol import derive_seed

ROUNDS, EPOCHS = (3, 10, 18), (1, 5)
PLAIN = "fedavg 1 x 20"
INTRODUCTION = """From the same updates of five sites, {seeds} seeds: loss (nats) and AUROC on the sites' validation
images beside those of the plain average, median (lowest to highest). Printed by
`python benchmarks/federated/one_round.py --out docs/results/one_round`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        folder = finished_run({**CASES[PLAIN], "seed": seed}, arguments.runs)
        if folder is None:
            sys.exit("the plain average's run failed: see its log")
        for server_round in ROUNDS:
            start = load_state(folder / "models" / f"round-{server_round:03d}.safetensors")[0]
            rows += [row for epochs in EPOCHS for row in one_round(seed, server_round, epochs, start)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    arguments.out.with_suffix(".md").write_text(table(rows))


def one_round(seed: int, server_round: int, epochs: int, start: State) -> Iterator[dict[str, Any]]:
    """Train every site from one start and yield the figures of every way to fuse."""
    config = parse_config(overlay(CASES[PLAIN], {"seed": seed, "local": {"epochs": epochs}}))
    size = config.model.image_size
    federation = locate("auto", image_size=size)
    sites = [
        load_site(site, found, image_size=size, phantom_images=config.data.phantom_images, seed=seed)
        for site, found in federation.sites.items()
    ]
    model = build_model(config.model, len(federation.classes), seed=seed)
    symmetry = describe_model(model)
    updates = []
    for site in sites:
        load_exchanged(model, start)
        train_locally(
            model,
            site.train,
            config.local,
            num_classes=len(federation.classes),
            normalise=partial(normalise, model=model),
            seed=derive_seed("train", seed, site.site, server_round + 1),
        )
        own = {name: tensor.clone() for name, tensor in exchanged_state(model).items()}
        updates.append(Update(site.site, own, len(site.train)))
    turned = [Update(u.site, streams_turned(u.state, start, symmetry), u.num_examples) for u in updates]
    for name, rule, given in (
        ("average", "average", updates),
        ("streams turned", "average", turned),
        ("circuit", "circuit", updates),
        ("opm", "opm", updates),
    ):
        fused = fuse(rule, given, reference=start, symmetry=symmetry, config=config.fuse)
        load_exchanged(model, fused.state)
        scores = np.concatenate([predict(model, site.val.images) for site in sites])
        targets = np.concatenate([site.val.targets for site in sites])
        loss = float(-np.log(np.maximum(scores[np.arange(len(targets)), targets], 1e-12)).mean())
        row = {"seed": seed, "round": server_round, "epochs": epochs, "fused": name, "loss": round(loss, 5)}
        told = [note for key, note in fused.notes.items() if key.startswith("match.")]
        left = sum(note.startswith("nothing moved") for note in told)
        yield {**row, "auroc": round(auroc_macro_ovr(scores, targets), 5), "left": left if name == "opm" else None}


def streams_turned(state: State, reference: State, symmetry: Symmetry) -> State:
    """Return the model with its streams in the bases nearest to the reference; its function is the same."""
    own, other = canonicalise(reference, symmetry), canonicalise(state, symmetry)
    streams = [name for name, space in symmetry.spaces.items() if space.kind == "orthogonal"]
    moves = {name: StreamBlock(own, symmetry, name).solve(other).move for name in streams}
    return apply(state, symmetry, Element(moves), like=reference)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the differences to the plain average: median (lowest to highest) over seeds."""
    lines = [
        INTRODUCTION.format(seeds=len({row["seed"] for row in rows})),
        "| local epochs | after round | fused | loss, beside average | AUROC, beside average | left as sent |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    keyed = {(row["seed"], row["round"], row["epochs"], row["fused"]): row for row in rows}
    for epochs in EPOCHS:
        for server_round in ROUNDS:
            for fused in ("streams turned", "circuit", "opm"):
                cells = []
                for figure in ("loss", "auroc"):
                    found = [
                        row[figure] - keyed[row["seed"], server_round, epochs, "average"][figure]
                        for row in rows
                        if (row["round"], row["epochs"], row["fused"]) == (server_round, epochs, fused)
                    ]
                    cells.append(f"{np.median(found):+.4f} ({min(found):+.4f} to {max(found):+.4f})")
                seeds = sorted({row["seed"] for row in rows})
                left = sum(keyed[seed, server_round, epochs, "opm"]["left"] for seed in seeds)
                cells.append(f"{left} of {5 * len(seeds)}" if fused == "opm" else "-")
                lines.append(f"| {epochs} | {server_round} | {fused} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
