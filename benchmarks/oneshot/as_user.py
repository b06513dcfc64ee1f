"""Whether `popmi fuse` reaches the one-shot study's figures: the command as a user types it, on the study's parents.

    python benchmarks/oneshot/as_user.py --out docs/results/as_user

Every line is one call of the command line on the files that parents.py keeps, with BloodMNIST as --data (the command
takes images without classes from the training split), beside the study's row for the same parents in oneshot.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from parents import get_parent, load_dataset, parent_path, recipes
from typer.testing import CliRunner

from popmi_core.cli.main import commands

Row = dict[str, Any]
_ARCHITECTURE = "popmi_vit_64"


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
    wanted, data = recipes("blood", _ARCHITECTURE, 5 if arguments.fours > 1 else 4), load_dataset("blood")["all"]
    files = {f"{r.site}{r.seed}": parent_path(r, arguments.runs) for r in wanted if get_parent(r, data, arguments.runs)}
    fours = list(combinations(files, 4))[: arguments.fours]
    groups = [*list(combinations(list(files)[:4], 2))[: arguments.pairs], *fours]
    study = json.loads(arguments.study.read_text())
    rows = [
        beside(
            {"parents": list(group), "typed": line.typed, "method": line.method}
            | call(line, [files[n] for n in group]),
            study,
        )
        for group in groups
        for line in LINES
        if len(group) > 2 or line.pairs
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    arguments.out.with_suffix(".json").write_text(text)
    arguments.out.with_suffix(".md").write_text(page(rows))


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
    row = {"accuracy": round(fused["accuracy"], 6), "loss": round(fused["loss"], 6), "seconds": told["seconds"]}
    print(json.dumps([line.typed, row]), flush=True)
    return row


def beside(row: Row, study: Sequence[Row]) -> Row:
    """Return the row with the study's accuracy and loss for the same parents; None where it has none."""
    same = ("blood", _ARCHITECTURE, row["method"], row["parents"])
    found = [r for r in study if (r["dataset"], r["architecture"], r["method"], r["parents"]) == same]
    return {
        **row,
        "study_accuracy": found[0]["accuracy"] if found else None,
        "study_loss": found[0]["nll"] if found else None,
    }


def page(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for count in dict.fromkeys(len(row["parents"]) for row in rows):
        mine = [row for row in rows if len(row["parents"]) == count]
        cases = len({tuple(row["parents"]) for row in mine})
        parts.append(f"## N = {count} ({cases} case{'s' if cases > 1 else ''})\n\n" + _HEAD)
        for typed in dict.fromkeys(row["typed"] for row in mine):
            same = [row for row in mine if row["typed"] == typed]
            columns = ("accuracy", "study_accuracy", "loss", "study_loss", "seconds")
            cells = [_cell([row[name] for row in same]) for name in columns]
            parts[-1] += f"\n| `{typed}` | {same[0]['method']} | " + " | ".join(cells) + " |"
        parts[-1] += "\n"
    return "\n".join(parts)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = statistics.median(known)
    return f"{middle:.3f}" if len(known) == 1 else f"{middle:.3f} ({min(known):.3f} to {max(known):.3f})"


_HEAD = """| typed after `popmi fuse A B ... --data bloodmnist.npz` | study's method | accuracy | study | loss, nats | study | seconds |
| --- | --- | ---: | ---: | ---: | ---: | ---: |"""  # noqa: E501
_INTRODUCTION = """# The command line beside the one-shot study

Printed by `python benchmarks/oneshot/as_user.py --out docs/results/as_user` (`POPMI_DATA` set); every figure is in
`as_user.json`.

`popmi fuse` as a user types it, on the ViT-64 parents of the [one-shot study](oneshot.md) (BloodMNIST content, test
images), beside the study's row for the same parents: median (lowest to highest). The command looks at 512 images
without classes where the study looks at 256 (`activations`), and at 4,096 for 300 steps where it looks at 1,024 for 200
(`learned`). All parents saw the same images here. Two models have one way to be matched; of more, `in-turn` is the
study's: each to the mean of those before it. Seconds are of a busy machine.
"""


if __name__ == "__main__":
    main()
