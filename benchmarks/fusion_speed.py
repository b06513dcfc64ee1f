"""Seconds and peak memory of one round's fusion, beside the straight use of scipy and POT on the same models.

    python benchmarks/fusion_speed.py --out docs/results/fusion_speed

Every cell runs in a process of its own: the sites' models are made (the global model plus drift, or of their own random
weights), then the rule is timed. Memory is the peak beyond what the models themselves take, in sizes of one model.
*in files*: the sites' models are opened, not loaded: memory is all that the round takes beside the global model.
``match``: the global model is prepared once, then every site is matched, nothing averaged.
``scipy`` and ``POT``: what one would write without this package, layer by layer, for hidden units only (assignment, or
exact transport, of every MLP's rows) and, for scipy, one Procrustes rotation of the stream.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from popmi_core.checkpoints import open_state, save_state
from popmi_core.config import FuseConfig
from popmi_core.fusion import State, Update, fuse
from popmi_core.fusion.opm import CERTIFIED
from popmi_core.matching import Matcher, describe_model

# Drift of a round: this share of every tensor's own spread.
DRIFT = 0.1
MIB = 1024
SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
RIVALS = ("ot_fusion", "scipy", "POT", "git_rebasin", "fedma")
CASES = (
    (SMALL, "drift", 10, ("average", "circuit", "match", "opm", *RIVALS)),
    (SMALL, "drift in files", 10, ("opm",)),
    (SMALL, "drift in files", 40, ("opm",)),
    (SMALL, "unrelated in files", 2, ("opm",)),
    (SMALL, "unrelated in files", 10, ("opm",)),
    (SMALL, "unrelated", 10, RIVALS),
    (BASE, "drift", 10, ("average", "circuit", "match", "opm", "opm_soup", *RIVALS)),
    (BASE, "drift in files", 10, ("opm",)),
    (BASE, "unrelated", 1, ("match",)),
    (BASE, "unrelated in files", 2, ("opm",)),
    (BASE, "unrelated in files", 10, ("opm",)),
    (BASE, "unrelated", 10, RIVALS),
)
CELLS = [(model, kind, sites, rule) for model, kind, sites, rules in CASES for rule in rules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="path without ending; .json and .md are written")
    parser.add_argument("--repeats", type=int, default=3, help="processes a cell, at most")
    parser.add_argument("--enough", type=float, default=30, help="a cell that took so many seconds is not repeated")
    parser.add_argument("--limit", type=float, default=600, help="seconds a cell may take")
    parser.add_argument("--runs", type=Path, default=Path("runs/fusion_speed.jsonl"), help="rows measured already")
    parser.add_argument("--only", default="", help="measure only cells with this in model,kind,sites,rule; tell all")
    parser.add_argument("--kept-only", action="store_true", help="measure nothing; tell what is there")
    parser.add_argument("--remark", default="", help="a sentence for the page: what else the machine did")
    parser.add_argument("--cell", help="measure this one here and print it: model,kind,sites,rule")
    arguments = parser.parse_args()
    if arguments.cell:
        model, kind, sites, rule = arguments.cell.split(",")
        print(json.dumps(measured(model, kind, int(sites), rule)))
        return
    arguments.begun = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows = [row for cell in CELLS for row in rows_of(cell, arguments)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    described = {"drift": DRIFT, "threads": torch.get_num_threads(), "remark": arguments.remark, "rows": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows, arguments.remark))


def rows_of(cell: tuple[str, str, int, str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a cell: those kept, and one measured now and kept where there is none.

    A cell that ran out of time is measured again under a higher limit; its first row stays and is told, too.
    """
    arguments.runs.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.runs.read_text().splitlines() if arguments.runs.exists() else []
    rows = [row for row in map(json.loads, lines) if (row["model"], row["kind"], row["sites"], row["rule"]) == cell]
    short = all(row["seconds"] is None and row.get("exit") is None and row["limit"] < arguments.limit for row in rows)
    if arguments.kept_only or not short or arguments.only not in ",".join(map(str, cell)):
        return rows
    row = row_of(cell, arguments)
    with arguments.runs.open("a") as kept:
        kept.write(json.dumps(row) + "\n")
    return [*rows, row]


def row_of(cell: tuple[str, str, int, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of one cell over several processes; what ran out of time says so."""
    found: list[dict[str, Any]] = []
    failed: int | None = None
    while len(found) < arguments.repeats and sum(item["seconds"] for item in found) < arguments.enough:
        command = [sys.executable, __file__, "--cell", ",".join(map(str, cell))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit, check=True)
        except subprocess.TimeoutExpired:
            break
        except subprocess.CalledProcessError as error:
            # A rival that needs more memory than there is must not end the run: its row says how it ended.
            print(f"{cell}: exit {error.returncode}\n{error.stderr}", file=sys.stderr)
            failed = error.returncode
            break
        found.append(json.loads(done.stdout.splitlines()[-1]))
    model, kind, sites, rule = cell
    row = {"model": model, "kind": kind, "sites": sites, "rule": rule, "run": arguments.begun}
    if not found:
        row |= {"seconds": None, "models": None, "certified": None, "limit": arguments.limit, "exit": failed}
    else:
        row |= {name: statistics.median(item[name] for item in found) for name in ("seconds", "models")}
        row["certified"] = found[0]["certified"]
        if rule == "match":
            row["seconds_a_site"] = statistics.median(item["seconds_a_site"] for item in found)
        row["all_seconds"] = [item["seconds"] for item in found]
    print(json.dumps(row), flush=True)
    return row


def measured(name: str, kind: str, sites: int, rule: str) -> dict[str, Any]:
    """Return seconds, peak memory beyond the models and the share of spaces the certificate left alone."""
    model = timm.create_model(name, num_classes=7)
    reference = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        return _measured(model, reference, list(_updates(name, reference, kind, sites, Path(folder))), rule)


def _updates(name: str, reference: State, kind: str, sites: int, folder: Path) -> Iterator[Update]:
    kind, _, place = kind.partition(" in ")
    for number in range(sites):
        state: State = _site(name, reference, kind, number)
        if place == "files":
            save_state(folder / f"{number}.safetensors", state)
            state = open_state(folder / f"{number}.safetensors")[0]
        yield Update(f"site{number}", state, 100 + number)


def _measured(model: nn.Module, reference: State, updates: list[Update], rule: str) -> dict[str, Any]:
    symmetry = describe_model(model)
    # What making the models left free, and its peak, shall not count (Linux, glibc).
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kibibytes("VmRSS")
    begun = time.perf_counter()
    left: list[bool] = []
    prepared = None
    if rule == "match":
        matcher = Matcher(reference, symmetry)
        prepared = time.perf_counter() - begun
        left = [matcher.match(item.state).certified for item in updates]
    elif rule in ("scipy", "POT"):
        for item in updates:
            _straight(rule, reference, item.state)
    else:
        notes = fuse(rule, updates, reference=reference, symmetry=symmetry, config=FuseConfig()).notes
        left = [CERTIFIED in note for key, note in notes.items() if key.startswith("match.")]
    seconds = time.perf_counter() - begun
    size = sum(tensor.numel() * tensor.element_size() for tensor in reference.values()) / MIB
    beyond = (_kibibytes("VmHWM") - before) / size
    return {
        "seconds": round(seconds, 3),
        "models": round(beyond, 2),
        "certified": round(sum(left) / len(left), 3) if left else None,
        "seconds_a_site": None if prepared is None else round((seconds - prepared) / len(updates), 4),
    }


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def _site(name: str, reference: State, kind: str, seed: int) -> dict[str, Tensor]:
    if kind == "unrelated":
        torch.manual_seed(seed + 1)
        return dict(timm.create_model(name, num_classes=7).state_dict())
    source = torch.Generator().manual_seed(seed)
    return {
        key: tensor + DRIFT * tensor.std(correction=0) * torch.randn(tensor.shape, generator=source)
        for key, tensor in reference.items()
    }


def _straight(rule: str, reference: State, candidate: State) -> None:
    import numpy as np
    import ot
    from scipy.linalg import orthogonal_procrustes
    from scipy.optimize import linear_sum_assignment

    for key, own in reference.items():
        if not key.endswith("mlp.fc1.weight"):
            continue
        first, second = own.double().numpy(), candidate[key].double().numpy()
        cost = np.square(first).sum(1)[:, None] + np.square(second).sum(1)[None] - 2 * first @ second.T
        if rule == "scipy":
            linear_sum_assignment(cost)
        else:
            ot.emd(ot.unif(len(cost)), ot.unif(len(cost)), cost, numItermax=10_000_000)
    if rule == "scipy":
        rows = [key for key in reference if key.endswith(("qkv.weight", "fc1.weight"))]
        own = torch.cat([reference[key] for key in rows]).double().numpy()
        orthogonal_procrustes(torch.cat([candidate[key] for key in rows]).double().numpy(), own)


def table(rows: list[dict[str, Any]], remark: str) -> str:
    """Return the markdown table below what was measured and how; the remark stands at its end."""
    missing = [cell for cell in CELLS if cell not in {(r["model"], r["kind"], r["sites"], r["rule"]) for r in rows}]
    runs = sorted({row["run"] for row in rows})
    told = "All rows are of one run, begun" if len(runs) == 1 else "The last column says of which run a row is, begun"
    lines = [
        "Printed by `python benchmarks/fusion_speed.py --out docs/results/fusion_speed`: median over so many processes",
        f"(the JSON has every one's seconds), two cores. {told} {', '.join(runs)}.",
        "Memory: peak beyond sites' and global model, in models; for sites *in files* all there is beside the global",
        "model. *Certified*: sites that one look at their weights found in place and that were handed on bit for bit.",
        "`match`: matching alone; what one site takes once the global model is prepared stands in brackets.",
        *([remark] if remark else []),
        "",
        "| model | sites | rule | seconds | peak memory (models) | certified | processes | run |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.2f}" if row["seconds"] is not None else f"over {row['limit']:.0f}"
        if row.get("exit") is not None:
            seconds = f"ended with exit status {row['exit']}"
        if row.get("seconds_a_site") is not None:
            seconds += f" ({row['seconds_a_site']:.3f} a site)"
        models = "-" if row["models"] is None else f"{row['models']:.1f}"
        kept = "-" if row["certified"] is None else f"{row['certified']:.0%}"
        cells = (row["model"], f"{row['sites']}, {row['kind']}", row["rule"], seconds, models, kept)
        lines.append(f"| {' | '.join(cells)} | {len(row.get('all_seconds', []))} | {1 + runs.index(row['run'])} |")
    if missing:
        lines += [
            "",
            "Not measured: " + "; ".join(f"{cell[0]}, {cell[2]} {cell[1]}, {cell[3]}" for cell in missing) + ".",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
