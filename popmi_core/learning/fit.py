"""Plain training of one model on one set of images: what distillation, the choice of a group and studies share.

AdamW with a linear warm-up and a cosine to zero (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts); the
state of the best epoch by validation is kept. Models that are trained in phases or have a loss of their own say so
(``popmi_core.invariance.method``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError, DataError, ModelError, RunError
from popmi_core.invariance.method import ExtraLoss, Phase, phases_of
from popmi_core.learning.judge import Judge, better, judge_on
from popmi_core.learning.norms import freeze_norms, set_training_mode
from popmi_core.learning.views import Views, view
from popmi_core.models import normalise as own

Normalise = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n channels height width"]]
Objective = Callable[[nn.Module, Float[Tensor, "n channels height width"], Int[Tensor, " n"]], Tensor]


@dataclass(frozen=True)
class FitConfig:
    """How a model is trained.

    Args:
        epochs: Passes over the training images, all phases together; at least one a phase.
        batch_size: Images a step at most; batches of one epoch are of nearly equal size.
        learning_rate: The highest, after the warm-up.
        weight_decay: Of parameters with two axes or more; biases and scales are not decayed.
        warmup: Share of a phase's steps in which the rate rises linearly from zero.
        seed: Fixes order, views and dropout.
        augment: Which random views are trained on.
        label_smoothing: Of the cross-entropy.
        max_grad_norm: Gradients are cut to this norm; None leaves them.
        choose: The validation figure that the kept epoch is best in (the loss decides ties, then the earlier epoch);
            ``nll`` is that loss, in nats; ``last`` keeps the last epoch.

    Raises:
        ConfigError: If a number is out of its range.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    seed: int = 0
    augment: Views = "dihedral+shifts"
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    choose: Literal["balanced_accuracy", "accuracy", "auroc", "nll", "last"] = "balanced_accuracy"

    def __post_init__(self) -> None:
        ranges = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "max_grad_norm": self.max_grad_norm is None or self.max_grad_norm > 0,
        }
        for name, fine in ranges.items():
            if not fine:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, which trains nothing sensibly. Rates and sizes are positive, "
                    "shares lie in [0, 1)."
                )


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: From 1; 0 is a model that has nothing to train.
        phase: The phase's name.
        loss: Mean training loss while the parameters moved.
        figures: The validation figures after it.
        seconds: Wall time of training, without validation.
        images_per_second: Training images a second.
    """

    number: int
    phase: str
    loss: float
    figures: Mapping[str, float]
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        state: The state of the best epoch; the model that was passed holds it too.
        history: Every epoch, in order.
        best: The epoch whose state it is.
    """

    state: dict[str, Tensor]
    history: tuple[Epoch, ...]
    best: Epoch


def cross_entropy(label_smoothing: float) -> Objective:
    """Return the mean cross-entropy in nats of a model's logits, as an objective."""

    def objective(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), target, label_smoothing=label_smoothing)

    return objective


def fit(
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    config: FitConfig,
    *,
    normalise: Normalise | None = None,
    objective: Objective | None = None,
    judge: Judge | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Train ``model`` in place and leave it at its best epoch, in evaluation mode.

    Runs where the model lies. The same arguments, machine and number of threads give the same bits; the global random
    state is left as it was. What is frozen stays so. Each phase starts from the best epoch of the one before and has
    its own warm-up and cosine; the kept epoch is the best of the last phase.

    Args:
        model: Normalised images [n, channels, side, side] -> logits [n, classes].
        train: Images to train on.
        val: Images to choose the epoch by; not looked at if ``judge`` is given or ``config.choose`` is ``last``.
        config: How.
        normalise: From stored pixels to inputs; the model's own (``popmi_core.models.normalise``) if None.
        objective: (model, inputs, targets) -> scalar loss; cross-entropy if None.
        judge: (model in evaluation mode) -> figures with ``config.choose`` and ``nll`` among them.
        on_epoch: Called after every epoch.

    Raises:
        DataError: If there is no training image, or the validation figure is undefined on ``val``.
        ConfigError: If there are fewer epochs than phases.
        ModelError: If a phase has nothing to train.
        RunError: If the loss becomes NaN or infinite.
    """
    if len(train) == 0:
        raise DataError("the training set is empty, expected at least one image. Check the split.")
    run = _Run(model, train, config, normalise, objective or cross_entropy(config.label_smoothing))
    if judge is None:
        judge = judge_on(val, run.normalise, needed=config.choose)
    phases = phases_of(model)
    history: list[Epoch] = []
    best = Epoch(0, "none", math.nan, {}, 0.0, 0.0)
    if not phases:
        model.eval()
        best = Epoch(0, "none", math.nan, judge(model), 0.0, 0.0)
    with _seeded(config.seed, run.device):
        for phase, epochs in zip(phases, _shares(phases, config.epochs), strict=True):
            best = _run_phase(run, phase, epochs, judge, history, on_epoch)
    return Fitted(_snapshot(model), tuple(history), best)


class _Run:
    """What all phases share: the images where the model lies, and the generator of order and views."""

    def __init__(
        self, model: nn.Module, train: ImageSet, config: FitConfig, normalise: Normalise | None, objective: Objective
    ) -> None:
        self.model, self.config, self.objective = model, config, objective
        self.normalise: Normalise = normalise or (lambda images: own(images, model))
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.images = torch.tensor(train.images, device=self.device)
        self.target = torch.tensor(train.targets, device=self.device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches = math.ceil(len(train) / config.batch_size)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Equal sizes: a short last batch would weigh its images more, and one image alone breaks a BatchNorm.
        order = torch.randperm(len(self.target), generator=self.generator)
        for index in order.tensor_split(self.batches):
            index = index.to(self.device)
            images = view(self.images[index], self.config.augment, self.generator)
            yield self.normalise(images), self.target[index]


def _run_phase(
    run: _Run,
    phase: Phase,
    epochs: int,
    judge: Judge,
    history: list[Epoch],
    on_epoch: Callable[[Epoch], None] | None,
) -> Epoch:
    best: Epoch | None = None
    state: dict[str, Tensor] = {}
    with _only(run.model, phase) as trained:
        optimizer, steps = _optimizer(trained, run.config), run.batches * epochs
        for number in range(epochs):
            started = time.perf_counter()
            loss = _run_epoch(run, optimizer, trained, number * run.batches, steps, len(history) + 1)
            seconds = time.perf_counter() - started
            run.model.eval()
            with torch.no_grad():
                figures = judge(run.model)
            epoch = Epoch(len(history) + 1, phase.name, loss, figures, seconds, len(run.target) / seconds)
            history.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
            if best is None or better(epoch.figures, best.figures, run.config.choose):
                best, state = epoch, _snapshot(run.model)
    assert best is not None
    run.model.load_state_dict(state)
    return best


def _run_epoch(
    run: _Run, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], before: int, steps: int, number: int
) -> float:
    set_training_mode(run.model)
    if len(run.target) == 1:
        freeze_norms(run.model)
    total = 0.0
    for step, (images, target) in enumerate(run.epoch(), start=before):
        for group in optimizer.param_groups:
            group["lr"] = run.config.learning_rate * rate(step, steps, run.config.warmup)
        loss = run.objective(run.model, images, target)
        extra = run.model.extra_loss() if isinstance(run.model, ExtraLoss) else None
        loss = loss if extra is None else loss + extra
        value = loss.item()
        _require_finite(math.isfinite(value), f"the training loss is {value}", number, run.config)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if run.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, run.config.max_grad_norm)
        optimizer.step()
        total += value * len(target)
    # The last step's gradient may have been the first that overflows.
    finite = all(bool(torch.isfinite(p).all()) for p in trained)
    _require_finite(finite, "a weight became NaN or infinite", number, run.config)
    return total / len(run.target)


def _require_finite(finite: bool, what: str, number: int, config: FitConfig) -> None:
    if not finite:
        raise RunError(
            f"epoch {number}: {what}, expected finite numbers. Lower the learning rate (it is "
            f"{config.learning_rate:g}), raise the warm-up, or set max_grad_norm."
        )


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the share of the highest learning rate at ``step`` of 0..steps-1: up in a line, down in a cosine."""
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@contextmanager
def _only(model: nn.Module, phase: Phase) -> Iterator[list[nn.Parameter]]:
    """Freeze all that the phase does not train while the block runs; what was frozen before is not trained."""
    moving = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trained = [p for name, p in moving if phase.trains(name)]
    if not trained:
        raise ModelError(
            f"phase {phase.name} of {type(model).__name__} has nothing to train: no free parameter's name starts with "
            f"{', '.join(phase.trained)}. Free some, or train nothing (no phases)."
        )
    for name, p in moving:
        p.requires_grad_(phase.trains(name))
    try:
        yield trained
    finally:
        for _, p in moving:
            p.requires_grad_(True)


def _optimizer(parameters: list[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def _shares(phases: tuple[Phase, ...], epochs: int) -> list[int]:
    """Return whole epochs for every phase, one at least, in proportion to their shares; they sum to ``epochs``.

    Raises:
        ConfigError: If there are fewer epochs than phases.
    """
    if epochs < len(phases):
        raise ConfigError(
            f"epochs is {epochs}, expected at least {len(phases)}: the model is trained in {len(phases)} phases "
            f"({', '.join(phase.name for phase in phases)}), each of one epoch or more. Give more epochs."
        )
    ends = [0]
    for done in range(1, len(phases) + 1):
        wanted = round(epochs * sum(phase.share for phase in phases[:done]))
        ends.append(min(max(wanted, ends[-1] + 1), epochs - len(phases) + done))
    return [end - start for start, end in pairwise(ends)]


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    # Dropout and stochastic depth draw from the global stream; it is put back afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
