"""What a model costs at inference: operations, exactly counted, and images a second, measured."""

from __future__ import annotations

import statistics
import time

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops(model: nn.Module, image: Float[Tensor, "1 c side side"]) -> int:
    """Return the floating-point operations of one image, a multiply-add counted as two.

    Matrix products and convolutions are counted, as torch dispatches them (attention in its unfused form);
    element-wise work and norms are not. The model is put in evaluation mode.
    """
    model.eval()
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            model(image)
    return int(counter.get_total_flops())


def images_per_second(model: nn.Module, images: Float[Tensor, "n c side side"], *, repeats: int = 5) -> float:
    """Return the median over ``repeats`` passes, after one that warms up; the model is put in evaluation mode."""
    model.eval()
    took = []
    with torch.inference_mode():
        for number in range(repeats + 1):
            started = time.perf_counter()
            model(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            if number:
                took.append(time.perf_counter() - started)
    return len(images) / statistics.median(took)
