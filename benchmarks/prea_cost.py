"""What PREA costs: processor time of a training step and of inference relative to the plain model, and parameters.

    OMP_NUM_THREADS=1 python benchmarks/prea_cost.py

Every round times each variant once in turn, so that a slow moment of the machine meets all alike; the ratios are of
medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from popmi_core.adapters import equivariance_error
from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.groups import point_group
from popmi_core.models import build_model

BACKBONE, SIZE, CLASSES = "popmi_vit_nano", 64, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    images = torch.randn(options.batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    target = torch.arange(options.batch) % CLASSES
    models = {"plain": build("none", None, "all")}
    for block in (0, 1, 2, 4):
        for group in ("C4", "D4"):
            for train in ("all", "adapter"):
                models[f"{group} {block} {train}"] = build(group, block, train)
    steps = {name: training_step(model, images, target) for name, model in models.items()}
    steps |= {f"{name} inference": inference(model, images) for name, model in models.items() if "adapter" not in name}
    cost = median_seconds(steps, options.rounds)
    print(f"{BACKBONE}, {SIZE}x{SIZE}, batch {options.batch}, {torch.get_num_threads()} thread(s)")
    print(f"plain: {cost['plain']:.3f} s of processor a step, {options.batch / cost['plain']:.0f} images/s\n")
    print("| k | C4, all | C4, adapter | C4, inference | D4, all | D4, adapter | D4, inference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for block in (0, 1, 2, 4):
        names = [f"{group} {block} {kind}" for group in ("C4", "D4") for kind in ("all", "adapter", "all inference")]
        shares = [cost[name] / cost["plain inference" if "inference" in name else "plain"] for name in names]
        print(f"| {block} | {' | '.join(f'{share:.2f}' for share in shares)} |")
    count = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    adapter = sum(parameter.numel() for parameter in models["C4 1 all"].prea.parameters())
    print(
        f"\nparameters: plain {count['plain']}, adapter {adapter}, C4 at k = 0 {count['C4 0 all'] - count['plain']:+}"
    )
    error = equivariance_error(models["plain"].eval(), images, point_group("D4"))
    print(f"the plain backbone's logits move by {error:.1f} of their spread under D4")


def build(group: str, block: int | None, train: str) -> nn.Module:
    """Return the plain model (group none) or the adapted one."""
    adapter = AdapterConfig.model_validate({"group": group, "merge_block": block, "train": train})
    config = ModelConfig(backbone=BACKBONE, image_size=SIZE, adapter=adapter)
    return build_model(config, CLASSES, seed=0)


def training_step(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """Return one step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

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


def median_seconds(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median processor time of each step; the first call of each only warms up."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


if __name__ == "__main__":
    main()
