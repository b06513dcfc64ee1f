"""Local training: some epochs over the site's own images, from the broadcast model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase

from client.augment import augment
from client.objectives import Objective, State, build_objective
from popmi_core.config import LocalConfig
from popmi_core.data.images import ImageSet
from popmi_core.errors import DataError, ModelError, UpdateError

Normalise = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]]


@dataclass(frozen=True)
class TrainReport:
    """What a site tells about one round of training. Losses are mean cross-entropies in nats."""

    loss: float
    loss_by_epoch: tuple[float, ...]
    num_examples: int
    steps: int
    seconds: float


def train_locally(
    model: nn.Module,
    data: ImageSet,
    local: LocalConfig,
    *,
    num_classes: int,
    normalise: Normalise,
    seed: int,
    reference: State | None = None,
) -> TrainReport:
    """Train ``model`` in place on ``data`` and leave it in evaluation mode.

    Only parameters with ``requires_grad`` move; a BatchNorm whose parameters are frozen keeps its statistics. Every
    image is used once per epoch, in batches of nearly equal size, none larger than ``local.batch_size``. The same
    arguments, machine and number of torch threads give bit-identical parameters.

    Args:
        reference: The broadcast parameters; the model's own at the start where it is ``None``.

    Raises:
        DataError: If the site has no training image.
        ModelError: If the model has nothing to train.
        UpdateError: If the loss is NaN or infinite, or the reference does not fit the model.
    """
    started = time.perf_counter()
    named = trained_parameters(model)
    if len(data) == 0:
        raise DataError("the training set is empty, expected at least one image. Check the split column of labels.csv.")
    objective = build_objective(local, named, reference=reference)
    step = _Step(model, objective, build_optimizer(list(named.values()), local), list(named.values()))
    batches = _Batches(data, local, normalise, torch.Generator().manual_seed(seed))
    losses: list[float] = []
    # Dropout and stochastic depth draw from the global stream; it is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(local.epochs):
            losses.append(_run_epoch(step, batches, epoch))
    model.eval()
    return TrainReport(losses[-1], tuple(losses), len(data), step.taken, time.perf_counter() - started)


def trained_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Return the parameters that training moves, by name.

    Raises:
        ModelError: If every parameter is frozen.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ModelError("every parameter of the model is frozen, expected some to train. Check model.adapter.train.")
    return named


def build_optimizer(parameters: Sequence[Parameter], local: LocalConfig) -> torch.optim.Optimizer:
    """Return a fresh optimiser; biases and norm scales (one axis or none) are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": local.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if local.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=local.learning_rate, fused=True)
    return torch.optim.AdamW(groups, lr=local.learning_rate, fused=True)


def set_training_mode(model: nn.Module) -> None:
    """Put the model in training mode, and every BatchNorm of a frozen part in evaluation mode.

    A norm belongs to a frozen part if its own parameters are frozen or, where it has none, those of the nearest module
    around it that has any. Its running statistics would otherwise drift although nothing around it learns.
    """
    model.train()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, _NormBase):
            continue
        around = name
        while around and not any(True for _ in modules[around].parameters()):
            around = around.rpartition(".")[0]
        if not any(p.requires_grad for p in modules[around].parameters()):
            module.eval()


class _Batches:
    """All images in memory; each epoch a new order, cut into batches of nearly equal size."""

    def __init__(self, data: ImageSet, local: LocalConfig, normalise: Normalise, generator: Generator) -> None:
        self.images, self.target = torch.tensor(data.images), torch.tensor(data.targets)
        self.normalise, self.generator = normalise, generator
        self.augment = local.augment
        self.count = math.ceil(len(self.target) / local.batch_size)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Equal sizes: a short last batch would weigh its images more, and one image alone breaks a BatchNorm.
        order = torch.randperm(len(self.target), generator=self.generator)
        for index in order.tensor_split(self.count):
            yield self.view(index)

    def view(self, index: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        images = self.images[index]
        if self.augment:
            images = augment(images, self.generator)
        return self.normalise(images), self.target[index]


class _Step:
    """One step of the optimiser on one batch."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        parameters: list[Parameter],
    ) -> None:
        self.model, self.objective, self.optimizer, self.parameters = model, objective, optimizer, parameters
        self.device = parameters[0].device
        self.taken = 0

    def __call__(self, images: Float[Tensor, "n 3 h w"], target: Int[Tensor, " n"]) -> float:
        if len(target) == 1:
            # The statistics of one image are no statistics: use the running ones for this batch.
            _freeze_norms(self.model)
        loss = self.objective.loss(self.model(images.to(self.device)), target.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.objective.correct(self.parameters)
        self.optimizer.step()
        self.taken += 1
        return loss.item()


def _run_epoch(step: _Step, batches: _Batches, epoch: int) -> float:
    set_training_mode(step.model)
    total, seen = 0.0, 0
    for images, target in batches.epoch():
        total += step(images, target) * len(target)
        seen += len(target)
    mean = total / seen
    if not math.isfinite(mean):
        raise UpdateError(
            f"epoch {epoch + 1}: the training loss is {mean}, expected a finite number. "
            "Lower local.learning_rate or start from another checkpoint."
        )
    return mean


def _freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
