"""Processor seconds of matching one site and of fusing five, for a site in the same basis and an unrelated model.

OMP_NUM_THREADS=1 python benchmarks/opm_speed.py [--backbone vit_tiny_patch16_224]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from popmi_core.config import ModelConfig
from popmi_core.fusion import Update, fuse
from popmi_core.matching import Matcher, Symmetry, describe_model
from popmi_core.models import build_model, exchanged_state

SITES = 5
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="popmi_vit_nano")
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    config = ModelConfig(backbone=options.backbone, image_size=options.image_size)
    model = build_model(config, 7, seed=0)
    reference, stranger = exchanged_state(model), exchanged_state(build_model(config, 7, seed=1))
    symmetry = describe_model(model)
    updates = [Update(f"site_{seed}", drifted(reference, seed), num_examples=100) for seed in range(SITES)]
    matcher, prepared = timed(lambda: Matcher(reference, symmetry))
    rows = {
        "prepare the global model, once a round": prepared,
        "match a site in the same basis": timed(lambda: matcher.match(updates[0].state))[1],
        "match an unrelated model": timed(lambda: matcher.match(stranger))[1],
    }
    for rule in ("average", "circuit", "adaptive_circuit"):
        rows[f"fuse {SITES} sites, {rule}"] = seconds_of_rule(rule, updates, reference, symmetry)
    numbers = sum(tensor.numel() for tensor in reference.values())
    print(f"{options.backbone}: {numbers / 1e6:.2f} million numbers, {torch.get_num_threads()} thread(s)\n")
    print("| step | seconds |\n| --- | --- |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.2f} |")


def seconds_of_rule(rule: str, updates: list[Update], reference: dict[str, Tensor], symmetry: Symmetry | None) -> float:
    """Return the processor seconds of one fusion."""
    return timed(lambda: fuse(rule, updates, reference=reference, symmetry=symmetry))[1]


def drifted(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the state with a tenth of each tensor's spread added as noise."""
    source = torch.Generator().manual_seed(seed)
    return {n: t + 0.1 * t.std(correction=0) * torch.randn(t.shape, generator=source) for n, t in state.items()}


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of the work, and its processor seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
