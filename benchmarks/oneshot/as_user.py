"""Whether `popmi fuse` reaches the one-shot study's figures: the command as a user types it, on the study's parents.

    python benchmarks/oneshot/as_user.py --out docs/results/as_user

Every line is one call of the command line on the files that parents.py keeps, with BloodMNIST as --data (the command
takes images without classes from the training split), beside the study's row for the same parents in oneshot.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from alignments import Aligned
from cases import Case
from methods import METHODS, apply_method
from parents import get_parent, load_dataset, parent_path, recipes
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.fusion.path import evaluate

Row = dict[str, Any]
_ARCHITECTURE = "popmi_vit_64"
# Raise it when what the command does changes, so that kept results are not used again.
_VERSION = 1


@dataclass(frozen=True)
class Line:
    """What a user types, the study's method it should reach, and whether pairs are fused so, too."""

    typed: str
    method: str
    pairs: bool = True


def _lines() -> tuple[Line, ...]:
    found = []
    for typed, method in (
        ("--rule opm", "OPM"),
        ("--rule opm --match activations", "OPM, statistics"),
        ("--rule opm-soup --match learned", "OPM, maps learned without labels"),
    ):
        found += [Line(typed, method), Line(f"{typed} --reference in-turn", method, pairs=False)]
    return (*found, Line("--rule opm --reference mean", "OPM", pairs=False))


LINES = _lines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--study", type=Path, default=Path("docs/results/oneshot.json"))
    parser.add_argument("--pairs", type=int, default=6, help="so many of the six pairs")
    parser.add_argument("--fours", type=int, default=1, help="so many of the five fours")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, count = load_dataset("blood")["all"], 5 if arguments.fours > 1 else 4
    parents = [get_parent(recipe, data, arguments.runs) for recipe in recipes("blood", _ARCHITECTURE, count)]
    pairs, fours = (list(combinations(part, size)) for part, size in ((parents[:4], 2), (parents, 4)))
    cases = [
        Case("blood", _ARCHITECTURE, list(group), [data] * len(group))
        for group in (*pairs[: arguments.pairs], *fours[: arguments.fours])
    ]
    printed = json.loads(arguments.study.read_text())
    rows = [
        measured(line, case, printed, arguments.runs)
        for case in cases
        for line in LINES
        if len(case.parents) > 2 or line.pairs
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    arguments.out.with_suffix(".json").write_text(text)
    told = f" --pairs {arguments.pairs} --fours {arguments.fours}"
    arguments.out.with_suffix(".md").write_text(page(rows, told))


def measured(line: Line, case: Case, printed: Sequence[Row], runs: Path) -> Row:
    """Return what the call gives, what the study's procedure gives from the same files, and what the study printed."""
    files = [parent_path(parent.recipe, runs) for parent in case.parents]
    same = ("blood", _ARCHITECTURE, line.method, case.members)
    found = [r for r in printed if (r["dataset"], r["architecture"], r["method"], r["parents"]) == same]
    typed = kept(["call", line.typed, *(path.name for path in files)], runs, lambda: call(line, files))
    study = kept(["study", line.method, *(path.name for path in files)], runs, lambda: studied(line.method, case))
    row: Row = {"parents": case.members, "typed": line.typed, "method": line.method, **typed}
    row |= {"study_accuracy": study["accuracy"], "study_loss": study["loss"]}
    return {**row, "printed_accuracy": found[0]["accuracy"] if found else None}


def kept(described: list[str], runs: Path, compute: Callable[[], Row]) -> Row:
    """Return a result from below --runs if it was computed before with this version of the code."""
    name = hashlib.sha256(json.dumps([_VERSION, *described]).encode()).hexdigest()[:16]
    path = runs / "as_user" / f"{name}.json"
    if not path.exists():
        row = compute()
        print(json.dumps([*described, row]), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    return dict(json.loads(path.read_text()))


def studied(name: str, case: Case) -> Row:
    """Return test accuracy and loss (nats) of a method as the study applies it."""
    method = next(method for method in METHODS if method.name == name)
    loss, accuracy = evaluate(case.model, apply_method(method, case, Aligned(case)).state, case.test)
    return {"accuracy": round(accuracy, 6), "loss": round(loss, 6)}


def call(line: Line, files: Sequence[Path]) -> Row:
    """Return test accuracy, loss (nats) and seconds of one call of `popmi fuse`.

    Raises:
        RuntimeError: If the command fails; what it said is told.
    """
    data = str(Path(os.environ["POPMI_DATA"]) / "bloodmnist_rebuilt_28.npz")
    typed = ["fuse", *map(str, files), "--model", _ARCHITECTURE, "--data", data, *line.typed.split(), "--json"]
    result = CliRunner().invoke(commands, typed)
    if result.exit_code:
        raise RuntimeError(f"popmi fuse {line.typed}: {result.exception or result.output}")
    told = json.loads(result.stdout)
    assert told["judged"]["split"] == "test"
    fused = told["judged"]["scores"]["fused"]
    return {"accuracy": round(fused["accuracy"], 6), "loss": round(fused["loss"], 6), "seconds": told["seconds"]}


def page(rows: Sequence[Row], told: str) -> str:
    """Return the whole page; ``told`` are the options that were given."""
    parts = [_INTRODUCTION.replace("OPTIONS", told)]
    for count in dict.fromkeys(len(row["parents"]) for row in rows):
        mine = [row for row in rows if len(row["parents"]) == count]
        cases = len({tuple(row["parents"]) for row in mine})
        lines = [f"## N = {count} ({cases} case{'s' if cases > 1 else ''})\n", *_HEAD]
        for typed in dict.fromkeys(row["typed"] for row in mine):
            same = [row for row in mine if row["typed"] == typed]
            cells = [_cell([row[name] for row in same]) for name in _COLUMNS]
            lines.append(f"| `{typed}` | {same[0]['method']} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = statistics.median(known)
    return f"{middle:.3f}" if len(known) == 1 else f"{middle:.3f} ({min(known):.3f} to {max(known):.3f})"


_COLUMNS = ("accuracy", "study_accuracy", "printed_accuracy", "loss", "study_loss", "seconds")
_HEAD = (
    "| typed after `popmi fuse A B ... --data bloodmnist.npz` | study's method | accuracy | study's procedure "
    "| in oneshot.json | loss, nats | study's procedure | seconds |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)
_INTRODUCTION = """# The command line beside the one-shot study

Printed by `python benchmarks/oneshot/as_user.pyOPTIONS --out docs/results/as_user` (`POPMI_DATA`
set); every figure is in `as_user.json`.

`popmi fuse` as a user types it, on the ViT-64 parents of the [one-shot study](oneshot.md) (BloodMNIST content, test
images), beside the study's own procedure on the same files and what oneshot.json has for parents of the same recipes
(training rounds differently on another kind of processor): median (lowest to highest). The command looks at 512 images
without classes where the study looks at 256 (`activations`), and at 4,096 for 300 steps where it looks at 1,024 for 200
(`learned`). All parents saw the same images here. Two models have one way to be matched; of more, `in-turn` is the
study's: each to the mean of those before it. Seconds are of a busy machine.
"""


if __name__ == "__main__":
    main()
