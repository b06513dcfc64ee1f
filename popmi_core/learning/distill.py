"""Distillation of a PREA model into one that costs nothing more than the plain backbone, on unlabelled images.

The teacher runs |G| copies through its first blocks; the student merges at block 0, where the merge is folded into
symmetric weights, or computes in regular fields (either is a plain timm model when written out). Both sides are
invariant under the group, so turned views of an image would teach nothing that the image does not: only shifts and
changes of light are drawn.

    loss = w_logits T^2 KL(softmax(t / T) || softmax(s / T)) + w_features ||f_s - f_t||^2 / ||f_t||^2

with logits t, s and features f before the head, every token of them (Hinton et al. 2015, arXiv:1503.02531, section 2;
features: Romero et al. 2015, arXiv:1412.6550, equation 3, without a regressor as both are of one width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.adapters import Prea, attach, detach, merge_lora
from popmi_core.adapters.soft import softness
from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.learning.fit import Epoch, FitConfig, Fitted, Normalise, fit
from popmi_core.learning.judge import Judge, better, predicted
from popmi_core.models import normalise as own

MIN_IMAGES = 10
_MOST_HELD = 1024


@dataclass(frozen=True)
class DistillConfig:
    """How a student is taught.

    Args:
        fit: Training; the epoch is chosen by the cross-entropy to the teacher's probabilities on held-out images.
        temperature: T, > 0; softens both sides' probabilities.
        logits: Weight of the logit term.
        features: Weight of the feature term; 0 leaves it out.
        held_out: Share of the images that only choose the epoch and measure agreement (1024 at most).

    Raises:
        ConfigError: If a number is out of its range.
    """

    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=20, augment="shifts", choose="nll"))
    temperature: float = 2.0
    logits: float = 1.0
    features: float = 1.0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        weighted = min(self.logits, self.features) >= 0 and self.logits + self.features > 0
        if not (0 < self.temperature < math.inf and weighted and 0 < self.held_out < 1):
            raise ConfigError(
                f"temperature {self.temperature}, weights {self.logits} and {self.features}, held_out {self.held_out}: "
                "expected T > 0, weights >= 0 that are not both 0, and a share between 0 and 1."
            )


@dataclass(frozen=True)
class Distilled:
    """What distillation gave.

    Attributes:
        fitted: The student's state, history and best epoch; figures are ``nll`` (nats, to the teacher's
            probabilities), ``divergence`` (KL, nats) and ``agreement`` (share of equal answers).
        before: The same figures before training.
        images: Images that were trained on, and held out.
    """

    fitted: Fitted
    before: dict[str, float]
    images: tuple[int, int]


def student_of(
    teacher: Prea,
    *,
    merge_block: int = 0,
    adapters: str = "none",
    rank: int = 8,
    fields: Literal["trivial", "regular"] = "trivial",
    seed: int = 0,
    image_size: int | None = None,
    allow_approximate: bool = False,
) -> Prea:
    """Return the student of a teacher, under its group.

    Args:
        teacher: Exact, with copies.
        merge_block: Where the student merges; 0 gives symmetric weights.
        adapters: The student's.
        rank: Of these.
        fields: ``trivial``: PREA around the teacher's own backbone, whose weights it starts from. ``regular``: the same
            architecture in regular fields, which start from the first channel of each that the teacher has; teach it
            by logits alone, as its features turn with the image.
        seed: Fixes what is drawn.
        image_size: Pixels per side; where it is given, it is checked that the student is exact at this size: an early
            merge needs strides and windows that the teacher's later one did not.
        allow_approximate: Take a size at which it is only nearly exact.

    Raises:
        ModelError: If the teacher is softened or computes in regular fields, or the student cannot be what is asked
            or is not exact at ``image_size`` (see ``attach``).
    """
    if teacher.fields == "regular":
        raise ModelError(
            "the teacher computes in regular fields: it runs no copies and costs what its plain backbone does, so that "
            "nothing is gained by distilling. Write it out as a plain timm model instead (popmi_core.adapters.fold)."
        )
    if softness(teacher.state_dict()):
        raise ModelError(
            "the teacher sees orientation in its last blocks (free_blocks), which no model that is exact can learn. "
            "Distil an exact teacher."
        )
    plain = detach(cast(Prea, merge_lora(teacher)))
    return attach(
        plain,
        group=teacher.group.name,
        merge_block=merge_block,
        fields=fields,
        adapters=adapters,
        rank=rank,
        seed=seed,
        image_size=image_size,
        allow_approximate=allow_approximate,
    )


def distill(
    teacher: nn.Module,
    student: nn.Module,
    images: np.ndarray[Any, np.dtype[np.uint8]],
    config: DistillConfig,
    *,
    normalise: Normalise | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Distilled:
    """Teach ``student`` in place, on images without labels; it is left at its best epoch, in evaluation mode.

    Where no epoch is better than the start, the start is kept (its number is 0).

    Args:
        teacher: Put in evaluation mode; its weights are not touched.
        student: Of the same number of classes and, where features are matched, the same features.
        images: ``uint8 [n, side, side, 3]``.
        config: How.
        normalise: From stored pixels to inputs; the student's own if None.
        on_epoch: Called with every ``Epoch``.

    Raises:
        ConfigError: If features are to be matched that turn with the image on one side only.
        DataError: If there are fewer than ``MIN_IMAGES`` images.
        ModelError: If the two answer in different shapes.
        RunError: If the loss diverges.
    """
    _require_features_alike(student, config)
    if len(images) < MIN_IMAGES:
        raise DataError(
            f"there are {len(images)} images to distill on, expected at least {MIN_IMAGES} (some choose "
            "the epoch). Give more; they need no labels."
        )
    unlabelled = ImageSet(np.ascontiguousarray(images), np.zeros(len(images), np.int64))
    held = min(_MOST_HELD, max(1, round(config.held_out * len(images))))
    order = np.random.default_rng(config.fit.seed).permutation(len(images))
    train, aside = unlabelled.subset(np.sort(order[held:])), unlabelled.subset(np.sort(order[:held]))
    as_inputs: Normalise = normalise or (lambda stored: own(stored, student))
    teacher.eval()
    judge = _judge(teacher, aside, as_inputs)
    with torch.no_grad():
        before = dict(judge(student.eval()))
    with _Pair(teacher, student, heard=config.features > 0) as pair:

        def objective(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
            del model, target
            return pair.loss(inputs, config)

        started = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        fitted = fit(
            student, train, aside, config.fit, normalise=as_inputs, objective=objective, judge=judge, on_epoch=on_epoch
        )
    if not better(fitted.best.figures, before, config.fit.choose):
        # A student that starts at its teacher can only lose by moving.
        student.load_state_dict(started)
        fitted = replace(fitted, state=started, best=Epoch(0, "start", math.nan, before, 0.0, 0.0))
    return Distilled(fitted, before, (len(train), len(aside)))


def distillation_loss(
    teacher: nn.Module, student: nn.Module, inputs: Float[Tensor, "n c side side"], config: DistillConfig
) -> Tensor:
    """Return the loss of ``student`` on normalised images (scalar); zero where it answers as the teacher does.

    Raises:
        ModelError: If the two answer in different shapes.
    """
    with _Pair(teacher, student, heard=config.features > 0) as pair:
        return pair.loss(inputs, config)


class _Pair:
    """Teacher and student side by side; what both heads receive is heard in passing while the block runs."""

    def __init__(self, teacher: nn.Module, student: nn.Module, *, heard: bool) -> None:
        self.teacher, self.student, self.heard = teacher, student, heard
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> _Pair:
        self.stack = ExitStack()
        if self.heard:
            for who, model in (("teacher", self.teacher), ("student", self.student)):
                self.stack.enter_context(_listening(model, self.features, who))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def loss(self, inputs: Tensor, config: DistillConfig) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(inputs)
        logits = self.student(inputs)
        _require_same("logits", logits, wanted)
        soft, hard = (torch.log_softmax(each / config.temperature, dim=1) for each in (logits, wanted))
        apart = functional.kl_div(soft, hard, log_target=True, reduction="batchmean")
        loss: Tensor = config.logits * config.temperature**2 * apart
        if not self.heard:
            return loss
        seen, shown = self.features["student"], self.features["teacher"].detach()
        _require_same("features", seen, shown)
        off = (seen - shown).flatten(1).square().sum(dim=1)
        size = shown.flatten(1).square().sum(dim=1).clamp_min(torch.finfo(shown.dtype).tiny)
        return loss + config.features * (off / size).mean()


@contextmanager
def _listening(model: nn.Module, heard: dict[str, Tensor], who: str) -> Iterator[None]:
    backbone: Any = getattr(model, "backbone", model)
    if not hasattr(backbone, "forward_head"):
        raise ModelError(
            f"{type(backbone).__name__} has no forward_head, as timm's models do, to take features from. Set the "
            "weight of features to 0."
        )
    original, own_already = backbone.forward_head, "forward_head" in vars(backbone)

    def forward_head(features: Tensor, *args: Any, **options: Any) -> Tensor:
        heard[who] = features
        logits: Tensor = original(features, *args, **options)
        return logits

    # On the instance, over the class's method, and taken off again: the model itself does not change.
    backbone.forward_head = forward_head
    try:
        yield
    finally:
        if own_already:
            backbone.forward_head = original
        else:
            del backbone.forward_head


def _require_features_alike(student: nn.Module, config: DistillConfig) -> None:
    if config.features > 0 and getattr(student, "fields", "trivial") == "regular":
        raise ConfigError(
            "a student in regular fields has features that turn with the image, its teacher's do not. Set the weight "
            "of features to 0: its logits teach it."
        )


def _require_same(what: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape:
        shapes = f"{tuple(got.shape[1:])}, the teacher's {tuple(expected.shape[1:])}"
        remedy = "Take a model of the same classes." if what == "logits" else "Set the weight of features to 0."
        raise ModelError(f"the student's {what} have shape {shapes}. {remedy}")


def _judge(teacher: nn.Module, data: ImageSet, normalise: Normalise) -> Judge:
    wanted = predicted(teacher, data, normalise)
    entropy = -float(np.mean(np.sum(wanted * _log(wanted), axis=1)))

    def judge(model: nn.Module) -> dict[str, float]:
        scores = predicted(model, data, normalise)
        if scores.shape != wanted.shape:
            _require_same("logits", torch.from_numpy(scores), torch.from_numpy(wanted))
        nll = -float(np.mean(np.sum(wanted * _log(scores), axis=1)))
        agreement = float(np.mean(scores.argmax(axis=1) == wanted.argmax(axis=1)))
        return {"nll": nll, "divergence": nll - entropy, "agreement": agreement}

    return judge


def _log(scores: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.log(np.maximum(scores, np.finfo(np.float64).tiny))
