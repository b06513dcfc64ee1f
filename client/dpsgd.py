"""Gradients with noise: every image's own gradient, clipped, summed and noised (DP-SGD, Abadi et al. 2016).

Clipping, noise and scaling are Opacus' ``DPOptimizer``. The per-image gradients come from ``torch.func`` instead of
Opacus' module hooks, which know no parameter that belongs to no layer (a ViT's class token or position embedding).
Each image runs through the model alone, so nothing can mix the images of a batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.objectives import Objective
from client.privacy import Charge

GRADIENT_NUMBERS = 2**26
"""Numbers held in per-image gradients at a time (256 MiB in float32); decides how many images go at once."""


def secret_generator(device: torch.device | str = "cpu") -> Generator:
    """Return a generator seeded by the operating system.

    The run's seed is known to the server: whoever knows the seed of the noise can subtract the noise. The stream itself
    is Mersenne Twister or Philox, which is not cryptographic.
    """
    return Generator(device=device).manual_seed(secrets.randbits(63))


def poisson_batches(
    num_examples: int, charge: Charge, steps: int, generator: Generator
) -> Iterator[Int[Tensor, " batch"]]:
    """Yield ``steps`` batches of indices; every image is in each with probability ``charge.sample_rate``.

    The accountant's bound holds for this sampling, not for shuffled batches. A batch may be empty.
    """
    sampler = UniformWithReplacementSampler(
        num_samples=num_examples, sample_rate=charge.sample_rate, generator=generator, steps=steps
    )
    for index in sampler:
        yield torch.tensor(index, dtype=torch.int64)


def image_gradients(
    model: nn.Module,
    objective: Objective,
    named: Mapping[str, Parameter],
    images: Float[Tensor, "n 3 h w"],
    target: Int[Tensor, " n"],
) -> tuple[dict[str, Float[Tensor, "n ..."]], Float[Tensor, " n"]]:
    """Return every image's gradient of every trained parameter, and every image's loss.

    Exact: the same as a loop over single images. Memory is ``n`` times the number of trained parameters.
    """
    trained = {name: p.detach() for name, p in named.items()}
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in named}
    fixed |= dict(model.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**values, **fixed}, (image.unsqueeze(0),))
        return objective.loss(logits, label.unsqueeze(0))

    # The fused CPU attention has no batching rule and would fall back to a loop; the plain formula is 5 times faster.
    with sdpa_kernel(SDPBackend.MATH):
        return vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")(trained, images, target)


class NoisyStep:
    """One step on one Poisson batch, in parts that fit in memory; an empty batch steps by noise alone."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        named: Mapping[str, Parameter],
        charge: Charge,
        *,
        expected_batch_size: float,
        generator: Generator,
    ) -> None:
        self.model, self.objective, self.named = model, objective, dict(named)
        self.parameters = list(named.values())
        self.at_once = max(1, GRADIENT_NUMBERS // sum(p.numel() for p in self.parameters))
        self.optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=charge.noise_multiplier,
            max_grad_norm=charge.max_grad_norm,
            expected_batch_size=expected_batch_size,
            generator=generator,
        )
        self.taken = 0

    def __call__(self, images: Float[Tensor, "n 3 h w"], target: Int[Tensor, " n"]) -> float:
        """Move the parameters once and return the mean loss of the batch, 0 for an empty one."""
        device = self.parameters[0].device
        # A split gives one empty part for an empty batch: the step is noise then, as the accountant counts on.
        parts = list(zip(torch.split(images, self.at_once), torch.split(target, self.at_once), strict=True))
        total = 0.0
        for number, (some, labels) in enumerate(parts, start=1):
            total += self._accumulate(some.to(device), labels.to(device), last=number == len(parts))
        self.objective.correct(self.parameters)
        self.optimizer.original_optimizer.step()
        # Opacus would otherwise take the next batch for a continuation of this one; it also frees the memory.
        self.optimizer.zero_grad()
        self.taken += 1
        return total / max(len(target), 1)

    def _accumulate(self, images: Tensor, target: Tensor, *, last: bool) -> float:
        losses = torch.zeros(0)
        if len(target):
            per_image, losses = image_gradients(self.model, self.objective, self.named, images, target)
        for name, p in self.named.items():
            # Where DPOptimizer looks for them.
            p.grad_sample = per_image[name] if len(target) else p.new_zeros((0, *p.shape))  # type: ignore[attr-defined]
        self.optimizer.signal_skip_step(do_skip=not last)
        # Adds the clipped gradients up; after the last part also adds the noise and divides by the expected size.
        self.optimizer.pre_step()
        if not last:
            self.optimizer.zero_grad()
        return float(losses.sum())
