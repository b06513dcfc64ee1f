"""Local training: some epochs over the site's own images, from the broadcast model."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from client.objectives import Broadcast, ControlUpdate, Objective, State, build_objective
from client.privacy import Charge, PrivateRound, check_private
from popmi_core.config import LocalConfig
from popmi_core.data.images import ImageSet
from popmi_core.errors import DataError, ModelError, UpdateError
from popmi_core.learning.norms import freeze_norms, set_training_mode
from popmi_core.learning.views import view

if TYPE_CHECKING:
    from client.dpsgd import NoisyStep

Normalise = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]]


@dataclass(frozen=True)
class TrainReport:
    """What a site tells about one round of training.

    Attributes:
        loss: Mean loss of the last epoch in nats, as its objective defines it, while the parameters moved.
        loss_by_epoch: The same for every epoch. NaN where private sampling drew no image in a whole epoch.
        num_examples: Training images of the site.
        steps: Steps of the optimiser.
        seconds: Wall time.
        control: What control variates keep on site and send; ``None`` for other objectives.
        noise_multiplier: Noise of DP-SGD; ``None`` without a privacy budget.
        epsilon: Spent by the site's images so far, this round included; ``None`` without a privacy budget.
        ledger_entries: Entries of the privacy ledger, this round included; 0 without a privacy budget.
    """

    loss: float
    loss_by_epoch: tuple[float, ...]
    num_examples: int
    steps: int
    seconds: float
    control: ControlUpdate | None = None
    noise_multiplier: float | None = None
    epsilon: float | None = None
    ledger_entries: int = 0


def train_locally(
    model: nn.Module,
    data: ImageSet,
    local: LocalConfig,
    *,
    num_classes: int,
    normalise: Normalise,
    seed: int,
    reference: State | None = None,
    control: State | None = None,
    server_control: State | None = None,
    privacy: PrivateRound | None = None,
    frozen: Sequence[str] = (),
) -> TrainReport:
    """Train ``model`` in place on ``data`` and leave it in evaluation mode.

    Only parameters with ``requires_grad`` move; a BatchNorm whose parameters are frozen keeps its statistics. Every
    image is used once per epoch, in nearly equal batches of at most ``local.batch_size``. The same arguments, machine
    and number of torch threads give bit-identical parameters. With ``privacy`` the round is paid for before an image
    is touched, and nothing is repeatable: the server knows ``seed``, so the operating system gives the randomness.

    Args:
        reference: The broadcast parameters (proximal); ``None`` is the model's own at the start.
        control: The site's control variate; ``server_control`` the server's; ``None`` is zero.
        privacy: The round's budget; ``None`` trains without noise.
        frozen: Names of parameters or modules that do not move in this round.

    Raises:
        DataError: If the site has no training image.
        ModelError: If the model has nothing to train.
        UpdateError: If the loss is NaN or infinite, or a broadcast tensor does not fit the model.
        PrivacyError: If the budget is spent or the model or objective would break the promise.
    """
    started = time.perf_counter()
    if len(data) == 0:
        raise DataError("the training set is empty, expected at least one image. Check the split column of labels.csv.")
    with held_still(model, frozen):
        named = trained_parameters(model)
        broadcast = Broadcast(reference, control, server_control)
        objective = build_objective(local, named, torch.tensor(data.targets), num_classes, broadcast)
        charge = _pay(model, len(data), local, privacy)
        step = _build_step(model, objective, build_optimizer(list(named.values()), local), named, charge, len(data))
        losses = _run_epochs(step, data, local, normalise, charge, seed)
    return TrainReport(
        loss=losses[-1],
        loss_by_epoch=tuple(losses),
        num_examples=len(data),
        steps=step.taken,
        seconds=time.perf_counter() - started,
        control=objective.finish(),
        noise_multiplier=charge.noise_multiplier if charge else None,
        epsilon=charge.epsilon if charge else None,
        ledger_entries=charge.entries if charge else 0,
    )


@contextmanager
def held_still(model: nn.Module, frozen: Sequence[str]) -> Iterator[None]:
    """Freeze the parameters of these names, and all below modules of these names, while the block runs."""
    held = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and any(name == prefix or name.startswith(f"{prefix}.") for prefix in frozen)
    ]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        # What travels is told by what can be trained at all, not by what was trained in this round.
        for p in held:
            p.requires_grad_(True)


def trained_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Return the parameters that training moves, by name.

    Raises:
        ModelError: If every parameter is frozen.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ModelError(
            "every parameter of the model is frozen, expected some to train. Check adapter.train and lora.train."
        )
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


class _Batches:
    """All images in memory; each epoch a new order, cut into batches of nearly equal size, or Poisson batches."""

    def __init__(
        self, data: ImageSet, local: LocalConfig, normalise: Normalise, generator: Generator, charge: Charge | None
    ) -> None:
        self.images, self.target = torch.tensor(data.images), torch.tensor(data.targets)
        self.normalise, self.generator, self.charge = normalise, generator, charge
        self.augment = local.augment
        self.count = math.ceil(len(self.target) / local.batch_size)

    def epoch(self) -> Iterator[tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]]:
        for index in self._indices():
            images = self.images[index]
            if self.augment:
                images = view(images, "shifts" if self.augment == "shifts" else "dihedral+shifts", self.generator)
            yield self.normalise(images), self.target[index]

    def _indices(self) -> Iterable[Int[Tensor, " n"]]:
        if self.charge is not None:
            from client.dpsgd import poisson_batches

            return poisson_batches(len(self.target), self.charge, self.count, self.generator)
        # Equal sizes: a short last batch would weigh its images more, and one image alone breaks a BatchNorm.
        order = torch.randperm(len(self.target), generator=self.generator)
        return order.tensor_split(self.count)


class _Step:
    """One step of the optimiser on one batch."""

    def __init__(
        self, model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, named: Mapping[str, Parameter]
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.parameters = list(named.values())
        self.taken = 0

    def __call__(self, images: Float[Tensor, "n 3 h w"], target: Int[Tensor, " n"]) -> float:
        if len(target) == 1:
            # The statistics of one image are no statistics: use the running ones for this batch.
            freeze_norms(self.model)
        device = self.parameters[0].device
        loss = self.objective.loss(self.model(images.to(device)), target.to(device))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.objective.correct(self.parameters)
        self.optimizer.step()
        self.taken += 1
        return loss.item()


def _pay(model: nn.Module, num_examples: int, local: LocalConfig, privacy: PrivateRound | None) -> Charge | None:
    if privacy is None:
        return None
    set_training_mode(model)
    check_private(model, local)
    return privacy.charge(num_examples, local)


def _build_step(
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, Parameter],
    charge: Charge | None,
    num_examples: int,
) -> _Step | NoisyStep:
    if charge is None:
        return _Step(model, objective, optimizer, named)
    from client.dpsgd import NoisyStep, secret_generator  # Opacus takes a second to import

    return NoisyStep(
        model,
        objective,
        optimizer,
        named,
        charge,
        expected_batch_size=num_examples * charge.sample_rate,
        generator=secret_generator(next(iter(named.values())).device),
    )


def _run_epochs(
    step: _Step | NoisyStep, data: ImageSet, local: LocalConfig, normalise: Normalise, charge: Charge | None, seed: int
) -> list[float]:
    if charge is not None:
        seed = secrets.randbits(63)
    batches = _Batches(data, local, normalise, torch.Generator().manual_seed(seed), charge)
    losses = []
    # Dropout and stochastic depth draw from the global stream; it is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(local.epochs):
            set_training_mode(step.model)
            losses.append(_run_epoch(step, batches, epoch))
    step.model.eval()
    return losses


def _run_epoch(step: _Step | NoisyStep, batches: _Batches, epoch: int) -> float:
    total, seen = 0.0, 0
    for images, target in batches.epoch():
        total += step(images, target) * len(target)
        seen += len(target)
    if seen == 0:
        return math.nan
    mean = total / seen
    if not math.isfinite(mean):
        raise UpdateError(
            f"epoch {epoch + 1}: the training loss is {mean}, expected a finite number. "
            "Lower local.learning_rate or start from another checkpoint."
        )
    return mean
