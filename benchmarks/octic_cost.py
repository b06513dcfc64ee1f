"""What the octic transformer saves: operations, parameters, and time against the plain ViT of the same shape.

    OMP_NUM_THREADS=1 python benchmarks/octic_cost.py

Every round times each model once in turn, so that a slow moment of the machine meets all alike; the ratios are of
medians over the rounds. Time is that of the processor on a CPU, of the clock on a GPU. Operations are counted in one
forward pass of one image, a multiplication and an addition as two. Writes docs/results/octic_cost.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from popmi_core.models import OcticVit  # registers the presets
from popmi_core.models.octic.presets import SIZES

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CLASSES = 7
_WIDE: dict[str, Any] = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 2, "num_heads": 12}
# name -> (plain, octic, pixels a side, images a batch)
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int, int]] = {
    "nano: 64 px, width 96, depth 4": (
        lambda: timm.create_model("popmi_vit_nano", num_classes=CLASSES),
        lambda: timm.create_model("popmi_octic_vit_nano", num_classes=CLASSES),
        SIZES["popmi_octic_vit_nano"],
        64,
    ),
    "28: 28 px, width 128, depth 3": (
        lambda: timm.create_model("popmi_vit_128", num_classes=CLASSES),
        lambda: timm.create_model("popmi_octic_vit_28", num_classes=CLASSES),
        SIZES["popmi_octic_vit_28"],
        128,
    ),
    "ViT-S/16: 224 px, width 384, depth 12": (
        lambda: timm.create_model("vit_small_patch16_224", num_classes=CLASSES),
        lambda: timm.create_model("popmi_octic_vit_small", num_classes=CLASSES),
        SIZES["popmi_octic_vit_small"],
        4,
    ),
    "wide: 224 px, width 768, depth 2": (
        lambda: VisionTransformer(num_classes=CLASSES, **_WIDE),
        lambda: OcticVit(num_classes=CLASSES, class_token=True, global_pool="token", **_WIDE),
        224,
        4,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-factor", type=int, default=1, help="images a batch times this (a GPU wants more)")
    parser.add_argument("--only", default="", help="run the pairs whose name contains this")
    parser.add_argument("--output", type=Path, default=RESULTS / "octic_cost")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = [measure(name, device, options.rounds, options.batch_factor) for name in PAIRS if options.only in name]
    record = {"device": named(device), "torch": torch.__version__, "rounds": options.rounds, "rows": rows}
    options.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    page = table(record)
    options.output.with_suffix(".md").write_text(page)
    print(page)


def measure(name: str, device: torch.device, rounds: int, factor: int) -> dict[str, Any]:
    """Return everything that is compared for one pair."""
    plain, octic, side, batch = PAIRS[name]
    batch *= factor
    models = {"plain": plain().to(device), "octic": octic().to(device)}
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    target = (torch.arange(batch) % CLASSES).to(device)
    steps = {f"{kind} training": training_step(model, images, target) for kind, model in models.items()}
    steps |= {f"{kind} inference": inference(model, images) for kind, model in models.items()}
    seconds = median_seconds(steps, rounds, device)
    row: dict[str, Any] = {"name": name, "batch": batch, "seconds": seconds}
    row["flops"] = {"plain": operations(plain, side), "octic": operations(octic, side)}
    row["parameters"] = {kind: sum(p.numel() for p in model.parameters()) for kind, model in models.items()}
    return row


def operations(build: Callable[[], nn.Module], side: int) -> int:
    """Return the operations of one forward pass of one image; attention by plain products, which are all counted."""
    set_fused_attn(False)
    try:
        model = build().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, side, side))
        return int(counter.get_total_flops())
    finally:
        set_fused_attn(True)


def training_step(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """Return one step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return one forward pass without gradients."""

    def run() -> None:
        with torch.inference_mode():
            model.eval()(images)

    return run


def median_seconds(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each step; the first call of each only warms up."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            wait(device)
            start = clock()
            step()
            wait(device)
            if number:
                spent[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def named(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def table(record: dict[str, Any]) -> str:
    """Return the page."""
    lines = [
        f"Octic transformers against plain ViTs of the same shape; {record['device']}, torch {record['torch']}, "
        f"medians of {record['rounds']} interleaved rounds. Ratios: octic / plain, below 1 is cheaper.",
        "",
        "| shape | parameters, plain | octic | GFLOP an image, plain | octic | ratio "
        "| training images/s, plain | octic | time ratio | inference images/s, plain | octic | time ratio |",
        "| --- " + "| ---: " * 11 + "|",
    ]
    for row in record["rows"]:
        flops, numbers, seconds = row["flops"], row["parameters"], row["seconds"]
        cells = [row["name"], f"{numbers['plain']:,}", f"{numbers['octic']:,}"]
        cells += [
            f"{flops['plain'] / 1e9:.3g}",
            f"{flops['octic'] / 1e9:.3g}",
            f"{flops['octic'] / flops['plain']:.2f}",
        ]
        for use in ("training", "inference"):
            plain, octic = seconds[f"plain {use}"], seconds[f"octic {use}"]
            cells += [f"{row['batch'] / plain:.3g}", f"{row['batch'] / octic:.3g}", f"{octic / plain:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
