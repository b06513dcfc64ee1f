"""What PREA adds to a plain backbone, in training and in inference: time and memory, beside averaging whole orbits.

    python benchmarks/equivariance/overhead.py --out docs/results/overhead

One run, one thread: every round times each variant of a family once in turn, so that a slow moment of the machine meets
all alike; medians over the rounds. Peak memory is what one step of a fresh child process needs beyond the model.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from cost import Step, inference, median_seconds, parameters, training_step
from torch import nn

import popmi_core.models  # noqa: F401  (registers the presets with timm)
from popmi_core.adapters import attach, fold
from popmi_core.invariance.build import build_method
from popmi_core.invariance.method import MethodContext
from popmi_core.learning.cost import flops

CLASSES = 7
# Family -> (timm name, arguments, image size, batch, values of k; the last is L).
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int, tuple[int, ...]]] = {
    "popmi_vit_nano": ("popmi_vit_nano", {}, 64, 16, (0, 1, 2, 4)),
    "ViT-Ti/16": ("vit_tiny_patch16_224", {"img_size": 224}, 224, 2, (0, 1, 3, 12)),
    "ResNet (test_resnet)": ("test_resnet", {}, 65, 16, (0, 1, 4)),
    "ConvNeXt (atto, narrow)": (
        "convnext_atto", {"depths": (2, 2, 4, 2), "dims": (16, 32, 64, 128)}, 64, 16, (0, 1, 4)),
}  # fmt: skip
INTRODUCTION = """# What PREA adds to a backbone

Printed by `python benchmarks/equivariance/overhead.py --out docs/results/overhead` in one run of one thread ({rounds}
rounds, torch {torch}); every figure is in `overhead.json`. Times are processor time, interleaved, medians, against
the plain backbone; *adapter*: the backbone is frozen, adapter and head train. *folded*: written out as the plain timm
model it is. Memory: what a training step (AdamW) or a forward pass needs at its peak beyond weights, gradients and
moments, in a process of its own. *k = L* is averaging the orbit's features; *equitune* is that method of the
catalogue (average of logits). *regular fields*: as they train; folded they are a plain timm model too.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=";".join(FAMILIES), help="with ; between")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--from-json", action="store_true", help="measure nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    told = arguments.out.with_suffix(".json")
    if not arguments.from_json:
        rows = [row for family in arguments.families.split(";") for row in measured(family, arguments.rounds)]
        found = {"rounds": arguments.rounds, "torch": torch.__version__, "rows": rows}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(found, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def variants(family: str) -> dict[str, Callable[[], nn.Module]]:
    """Return what is compared, by name; each makes a fresh model."""
    name, options, size, _, blocks = FAMILIES[family]

    def plain() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
        return model

    def prea(group: str, block: int, **more: Any) -> Callable[[], nn.Module]:
        return lambda: attach(plain(), group=group, merge_block=block, **more)

    found: dict[str, Callable[[], nn.Module]] = {"plain": plain}
    for group in ("C4", "D4"):
        for block in blocks:
            found[f"{group}, k = {block}{' = L' if block == blocks[-1] else ''}"] = prea(group, block)
        found[f"{group}, k = 0, lifted convolutions"] = prea(group, 0, adapters="lifted-conv")
        found[f"{group}, k = 0, folded"] = lambda group=group: fold(prea(group, 0, adapters="none")())
        found[f"{group}, regular fields"] = lambda group=group: attach(plain(), group=group, fields="regular")
        found[f"{group}, k = {blocks[1]}, adapter"] = prea(group, blocks[1], train="adapter")
        context = MethodContext(plain, group, size, 3, CLASSES, 0)
        found[f"{group}, equitune"] = lambda context=context: build_method("equitune-logits", context)
    return found


def measured(family: str, rounds: int) -> list[dict[str, Any]]:
    """Return one row a variant of a family."""
    _, _, size, batch, _ = FAMILIES[family]
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    target = torch.arange(batch) % CLASSES
    made = variants(family)
    models = {name: make() for name, make in made.items()}
    train = {name: training_step(model, images, target) for name, model in models.items()}
    infer = {name: inference(model, images) for name, model in models.items()}
    memory = {name: (peak_megabytes(train[name]), peak_megabytes(infer[name])) for name in models}
    seconds = median_seconds(train, rounds), median_seconds(infer, rounds)
    work = {name: flops(model, images[:1]) for name, model in models.items()}
    rows = []
    for name, model in models.items():
        rows.append({
            "family": family, "image_size": size, "batch": batch, "variant": name, "parameters": parameters(model),
            "flops": work[name], "training_seconds": seconds[0][name], "inference_seconds": seconds[1][name],
            "training_megabytes": memory[name][0], "inference_megabytes": memory[name][1],
            **{f"{key}_times": found[name] / found["plain"]
               for key, found in (("training", seconds[0]), ("inference", seconds[1]), ("flops", work))},
        })  # fmt: skip
        print(family, name, f"training {rows[-1]['training_times']:.2f}, inference {rows[-1]['inference_times']:.2f}",
              flush=True)  # fmt: skip
    return rows


def peak_megabytes(step: Step) -> float:
    """Return how much memory the second of two steps needs beyond what is there before it, MB, in a child (Linux).

    The first step loads code and fills gradients and the optimiser's moments; what was freed is given back, as the
    next step would fill it unseen.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_told_peak, args=(step, sender))
    child.start()
    peak: float = receiver.recv()
    child.join()
    return peak


def _told_peak(step: Step, sender: Any) -> None:
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far
    before = _status("VmRSS")
    step()
    sender.send((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def report(found: dict[str, Any]) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION.format(**found), summary(found["rows"])]
    for family in dict.fromkeys(row["family"] for row in found["rows"]):
        parts.append(table([row for row in found["rows"] if row["family"] == family]))
    return "\n".join(parts)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one family's table."""
    first = rows[0]
    lines = [
        f"## {first['family']}, {first['image_size']} px, batches of {first['batch']}\n",
        f"Plain: {first['training_seconds'] * 1e3:.1f} ms of processor a training step, "
        f"{first['batch'] / first['inference_seconds']:.0f} images/s in inference.\n",
        "| variant | parameters | x FLOPs | x training time | x inference time | training, MB | inference, MB |",
        "| --- |" + " ---: |" * 6,
    ]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {row['parameters']:,} | {row['flops_times']:.2f} | {row['training_times']:.2f} | "
            f"{row['inference_times']:.2f} | {row['training_megabytes']:.1f} | {row['inference_megabytes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return the medians over families of the designs that every family has."""
    lines = ["| design | x training time | x inference time |", "| --- | ---: | ---: |"]
    kinds = ("k = 0", "k = 0, folded", "k = 0, lifted convolutions", "regular fields", "k = 1", "equitune")
    for design in (f"{group}, {kind}" for group in ("C4", "D4") for kind in kinds):
        mine = [row for row in rows if row["variant"] == design]
        if mine:
            cells = [
                f"{statistics.median(row[key] for row in mine):.2f} ({min(row[key] for row in mine):.2f} to "
                f"{max(row[key] for row in mine):.2f})"
                for key in ("training_times", "inference_times")
            ]
            lines.append(f"| {design} | {' | '.join(cells)} |")
    return "Over the families: median (lowest to highest).\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
