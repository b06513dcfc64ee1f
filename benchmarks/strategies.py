"""OPM, FedAvg and the two ends (every site alone, all images in one place) on the same sites, seeds and budget.

    python benchmarks/strategies.py --out docs/results/strategies

writes strategies.json (every run) and strategies.md (medians over seeds, lowest and highest). Runs are kept below
--runs by a hash of their description, so a study that was stopped goes on. Figures are exact, computed here from the
last models on the sites' test images; nothing was tuned on them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from popmi_core.checkpoints import load_state
from popmi_core.cli.lineup import plan_run, reopen_run
from popmi_core.cli.simulate import run_simulation
from popmi_core.cli.summary import summarise
from popmi_core.config import parse_config, read_config
from popmi_core.data import load_site
from popmi_core.metrics import auroc_macro_ovr, classification_metrics
from popmi_core.models import build_model, load_exchanged, predict
from popmi_core.protocol import PLAN_FILE, POOLED_SITE, RunPlan

COLUMNS = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "worst_site_auroc": "worst site AUROC",
    "external_auroc": "external AUROC (local: mean over the sites' models)",
    "seconds": "seconds",
}


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for strategy in arguments.strategies.split(","):
        for seed in range(arguments.seeds):
            plan = finished_plan(strategy, seed, arguments)
            rows.append({"strategy": strategy, "seed": seed, **exact_figures(plan)})
            print(json.dumps(rows[-1]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    plan = finished_plan(arguments.strategies.split(",")[0], 0, arguments)
    described = {"config": plan.config.model_dump(mode="json"), "data": plan.data_name, "phantom": plan.phantom}
    arguments.out.with_suffix(".json").write_text(json.dumps({**described, "runs": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows, plan, arguments.seeds))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "deploy" / "demo.toml")
    parser.add_argument("--strategies", default="opm,fedavg,local,pooled")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def finished_plan(strategy: str, seed: int, arguments: argparse.Namespace) -> RunPlan:
    """Run what is not there yet; go on with what was stopped."""
    described = read_config(arguments.config).model_dump(mode="json", exclude_unset=True)
    config = parse_config({**described, "strategy": strategy, "seed": seed, "match": {}, "fuse": {}})
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:10]
    folder = arguments.runs / f"{strategy}-seed{seed}-{digest}"
    plan = reopen_run(folder) if (folder / PLAN_FILE).exists() else plan_run(config, folder)
    if not plan.resume or summarise(folder).status != "finished":
        run_simulation(plan, engine="inprocess", quiet=False)
    return plan


def exact_figures(plan: RunPlan) -> dict[str, Any]:
    """Return the last models' figures over all test images, and at the site where they are worst."""
    model = build_model(plan.config.model, len(plan.classes), seed=plan.config.seed)
    folder, size = Path(plan.folder), plan.config.model.image_size
    last = f"round-{plan.config.rounds:03d}.safetensors"
    state, _ = load_state(folder / "models" / last)
    own = load_state(folder / "state" / last)[0] if plan.config.strategy == "local" else {}
    scores, targets, by_site, elsewhere = [], [], {}, []
    for item in (item for item in plan.lineup if item.site != POOLED_SITE):
        prefix = f"site/{item.site}/"
        mine = {name.removeprefix(prefix): tensor for name, tensor in own.items() if name.startswith(prefix)}
        load_exchanged(model, mine or state)
        data = load_site(
            item.site,
            item.data[0],
            image_size=size,
            phantom_images=plan.config.data.phantom_images,
            seed=plan.config.seed,
        ).test
        scores.append(predict(model, data.images))
        targets.append(data.targets)
        by_site[item.site] = auroc_macro_ovr(scores[-1], data.targets)
        if plan.external is not None and (mine or not elsewhere):
            outside = load_site("external", plan.external, image_size=size, phantom_images=0, seed=0).external
            elsewhere.append(auroc_macro_ovr(predict(model, outside.images), outside.targets))
    figures = classification_metrics(np.concatenate(scores), np.concatenate(targets))
    summary = summarise(folder)
    return {
        **{name: round(value, 6) for name, value in figures.items()},
        "worst_site_auroc": round(min(by_site.values()), 6),
        "site_auroc": {site: round(value, 6) for site, value in by_site.items()},
        "external_auroc": round(statistics.mean(elsewhere), 6) if elsewhere else None,
        "seconds": summary.seconds,
        "overhead": summary.overhead,
    }


def table(rows: list[dict[str, Any]], plan: RunPlan, seeds: int) -> str:
    """Return the markdown table: median over seeds, lowest and highest behind it."""
    config = plan.config
    kind = "**phantom** (says nothing about patients)" if plan.phantom else plan.data_name
    lines = [
        f"Data: {kind}, {len([item for item in plan.lineup if item.site != POOLED_SITE])} sites, test split. "
        f"{config.model.backbone} at {config.model.image_size} px from random weights, {config.rounds} rounds of "
        f"{config.local.epochs} local epoch(s), {seeds} seeds: median (lowest to highest). "
        "Seconds are wall time and grow with whatever else the machine does.",
        "",
        "| strategy | " + " | ".join(COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = [row for row in rows if row["strategy"] == strategy]
        lines.append(
            f"| {strategy} | " + " | ".join(cell([row[name] for row in mine], name) for name in COLUMNS) + " |"
        )
    return "\n".join(lines) + "\n"


def cell(values: list[float | None], name: str) -> str:
    """Return median (lowest to highest), or a dash where there is no such figure."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 0 if name == "seconds" else 3
    low, middle, high = min(known), statistics.median(known), max(known)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
