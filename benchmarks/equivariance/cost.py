"""What a model costs in parameters, time and memory, time always beside the plain model's."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

Step = Callable[[], None]


def parameters(model: nn.Module) -> int:
    """Return the number of free parameters: tied weights count once an orbit."""
    return sum(parameter.numel() for parameter in model.parameters())


def training_step(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Step:
    """Return one step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        model.train()
        loss = nn.functional.cross_entropy(model(images), target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def inference(model: nn.Module, images: torch.Tensor) -> Step:
    """Return one forward pass without gradients."""

    def run() -> None:
        with torch.inference_mode():
            model.eval()(images)

    return run


def median_seconds(steps: Mapping[str, Step], rounds: int, *, at_most: float = float("inf")) -> dict[str, float]:
    """Return the median processor time of each step, interleaved: a slow moment of the machine meets all alike.

    The first call of each only warms up. Rounds end early once ``at_most`` seconds of processor time are spent.
    """
    spent: dict[str, list[float]] = {name: [] for name in steps}
    begun = time.process_time()
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:
                spent[name].append(time.process_time() - start)
        if number and time.process_time() - begun > at_most:
            break
    return {name: statistics.median(times) for name, times in spent.items()}


def resident_megabytes() -> float:
    """Return the most memory this process has held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def relative_speed(model: nn.Module, plain: nn.Module, image_size: int, *, batch: int = 64) -> dict[str, float]:
    """Return images per second of one core in inference, and how many times the plain model's time it takes."""
    images = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    steps = {"model": inference(model, images), "plain": inference(plain, images)}
    seconds = median_seconds(steps, 7, at_most=8.0)
    return {"images_per_second": batch / seconds["model"], "times_plain": seconds["model"] / seconds["plain"]}
