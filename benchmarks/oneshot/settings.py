"""Every rival at its best setting: a small grid each, chosen on validation images, told on other parents' test images.

    python benchmarks/oneshot/settings.py --out docs/results/settings

A setting is chosen by accuracy on the validation images of BloodMNIST, once for the first pair of parents and once for
the first four. The library's default (which the study runs) and the chosen setting are then fused from all other pairs
and fours, and these alone are told on test images. Parents and results are kept below --runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from cases import MORE_UNLABELLED, UNLABELLED, Case, all_cases
from parents import load_dataset, recipes
from settings_page import page

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion.dispatch import fuse, needs
from popmi_core.fusion.path import evaluate
from popmi_core.fusion.update import Update
from popmi_core.matching.statistics import cross_statistics

Row = dict[str, Any]
ARCHITECTURES = ("popmi_vit_64", "popmi_mlp")
# Raise it when what is measured changes, so that kept results are not used again.
_VERSION = 1


@dataclass(frozen=True)
class Setting:
    """One way to run a rival.

    ``options`` are keyword arguments of the rule, ``config`` keys of FuseConfig, ``images`` how many a site looks at,
    ``best_first`` whether the parent with the lowest validation loss is the reference instead of the first.
    """

    told: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    best_first: bool = False


@dataclass(frozen=True)
class Rival:
    """A rule, what it looks at, and its grid: the first setting is what the study runs."""

    name: str
    rule: str
    looks: str
    grid: tuple[Setting, ...]


def _reference(images: int = 0) -> tuple[Setting, Setting]:
    return (
        Setting("to the first parent", images=images),
        Setting("to the best parent", images=images, best_first=True),
    )


def _softness(images: int = 0) -> tuple[Setting, ...]:
    # Imfeld et al. (arXiv:2310.05719) find larger ones good for transformers.
    values = (0.01, 0.003, 0.03, 0.1, 0.3)
    return tuple(Setting(f"entropic_reg {value}", config={"entropic_reg": value}, images=images) for value in values)


_STARTS = tuple(Setting(f"{count} starts", options={"starts": count}) for count in (4, 1, 2, 16))
_MANY = Setting("1,024 images", images=MORE_UNLABELLED)
RIVALS = (
    # Of more than two models Git Re-Basin has no random starts here: the reference is what its pass begins from.
    Rival("Git Re-Basin", "git_rebasin", "weights", (*_STARTS, Setting("to the best parent", best_first=True))),
    Rival("OT-Fusion", "ot_fusion", "weights", _reference()),
    Rival("OT-Fusion, soft", "ot_fusion_soft", "weights", _softness()),
    Rival("FedMA", "fedma", "weights", _reference()),
    Rival("RegMean", "regmean", "unlabelled", tuple(
        Setting(f"shrink {value}", config={"regmean_shrink": value}, images=MORE_UNLABELLED)
        for value in (0.9, 0.0, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0)
    )),
    Rival("Git Re-Basin, activations", "git_rebasin_activations", "unlabelled", (
        *_reference(UNLABELLED), _MANY,
        Setting("inner products", options={"correlated": False}, images=UNLABELLED),
        Setting("inner products, 1,024 images", options={"correlated": False}, images=MORE_UNLABELLED),
    )),
    Rival("OT-Fusion, activations", "ot_fusion", "unlabelled", (*_reference(UNLABELLED), _MANY)),
    Rival("OT-Fusion, soft, activations", "ot_fusion_soft", "unlabelled", _softness(UNLABELLED)),
    Rival("greedy soup", "greedy_soup", "labelled", (
        Setting("in the order of loss"), Setting("in the order of accuracy", options={"measure": "accuracy"}),
    )),
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows: list[Row] = []
    sites = load_dataset("blood")
    for architecture in (arguments.architectures or ",".join(ARCHITECTURES)).split(","):
        wanted = recipes("blood", architecture, arguments.seeds)
        cases = list(all_cases("blood", architecture, sites, arguments.runs, wanted=wanted))
        for size, count in ((2, arguments.pairs), (4, arguments.fours)):
            sized = [case for case in cases if len(case.parents) == size][:count]
            rows += tuned(sized, arguments.runs / "settings") if sized else []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    arguments.out.with_suffix(".json").write_text(text)
    asked = {name: getattr(arguments, name) for name in ("architectures", "pairs", "fours")}
    told = "".join(f" --{name} {value}" for name, value in asked.items() if value is not None)
    arguments.out.with_suffix(".md").write_text(page(rows, json.loads(arguments.study.read_text()), told))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", help=f"default {','.join(ARCHITECTURES)}")
    parser.add_argument("--seeds", type=int, help="default: as parents.py says")
    parser.add_argument("--pairs", type=int, help="at most so many; settings are chosen on the first; default: all")
    parser.add_argument("--fours", type=int, help="the same for fours")
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--study", type=Path, default=Path("docs/results/oneshot.json"), help="OPM's rows, to compare")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def tuned(cases: list[Case], folder: Path) -> list[Row]:
    """Return one row a setting on the first case's validation images, and two a case on the others' test images."""
    rows = []
    for rival in RIVALS:
        tried = [measured(cases[0], rival, setting, "val", folder) for setting in rival.grid]
        best = max(range(len(tried)), key=lambda index: tried[index]["accuracy"] or 0.0)
        rows += tried
        for case in cases[1:]:
            for role, setting in (("default", rival.grid[0]), ("chosen", rival.grid[best])):
                rows.append({**measured(case, rival, setting, "test", folder), "role": role})
    return rows


def measured(case: Case, rival: Rival, setting: Setting, split: str, folder: Path) -> Row:
    """Return accuracy and loss (nats) of the fused model, kept under a hash of what they depend on.

    Both are None where the rule refuses its inputs; ``refused`` then says why.
    """
    parents = [parent.recipe.name for parent in case.parents]
    described = [_VERSION, parents, rival.name, asdict(setting), split]
    path = folder / f"{hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    row: Row = {
        "architecture": case.architecture, "n": len(case.parents), "parents": case.members, "rival": rival.name,
        "looks": rival.looks, "setting": setting.told, "split": split, "accuracy": None, "loss": None,
    }  # fmt: skip
    started = time.process_time()
    try:
        state = fused_by(case, rival, setting)
        row["seconds"] = round(time.process_time() - started, 2)
        loss, accuracy = evaluate(case.model, state, case.test if split == "test" else case.data[0].val)
        row |= {"accuracy": round(accuracy, 6), "loss": round(loss, 6)}
    except UpdateError as error:
        row["refused"] = str(error)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    print(json.dumps(row), flush=True)
    return row


def fused_by(case: Case, rival: Rival, setting: Setting) -> dict[str, torch.Tensor]:
    """Return the parents fused by a rival at one setting."""
    case = best_first(case) if setting.best_first else case
    options = dict(setting.options)
    grams = needs(rival.rule).grams
    updates = [
        Update(name, state, 1, case.grams(member, state) if grams else {})
        for member, (name, state) in enumerate(zip(case.members, case.states, strict=True))
    ]
    if setting.images and not grams:
        assert case.symmetry is not None
        options["statistics"] = {
            name: cross_statistics(
                case.model, case.states[0], case.states[member], case.symmetry, case.pixels(member, setting.images)
            )
            for member, name in enumerate(case.members)
        }
    return fuse(
        rival.rule, updates, reference=case.states[0], symmetry=case.symmetry, config=FuseConfig(**setting.config),
        scorer=case.scorer, **options,
    ).state  # fmt: skip


def best_first(case: Case) -> Case:
    """Return the case with the parent of the lowest validation loss in front, the others in their order."""
    losses = [evaluate(case.model, state, site.val)[0] for state, site in zip(case.states, case.data, strict=True)]
    order = sorted(range(len(losses)), key=lambda member: (losses[member] > min(losses), member))
    parents, data = ([listed[member] for member in order] for listed in (case.parents, case.data))
    return Case(case.dataset, case.architecture, parents, data)


if __name__ == "__main__":
    main()
