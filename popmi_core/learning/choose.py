"""Which group a data set has, chosen by validation: short pilots, then the largest group that costs nothing.

Candidates, from the smallest group to the largest: C1 (no adapter), soft C4 (PREA whose last blocks may see
orientation), C4, D4. Chosen is the largest whose mean validation figure is within one standard error of the best (the
rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3): where orientation says nothing, the
larger group is free knowledge; where it says something, a model that cannot see it falls behind by far more.

Pilots never see turned views: an exact model gains nothing from them, and one that is free to would unlearn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from popmi_core.config import AdapterConfig
from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError, ModelError
from popmi_core.learning.fit import FitConfig, fit

SHARES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "auroc": "AUROC"}
"""Figures between 0 and 1 that groups may be chosen by, in words."""


@dataclass(frozen=True)
class Candidate:
    """A way to treat orientation: ``name`` for people, ``group`` of PREA (``none`` without), ``free_blocks`` of it."""

    name: str
    group: str
    free_blocks: int = 0


def candidates_of(free_blocks: int = 1) -> tuple[Candidate, ...]:
    """Return the candidates, from the smallest group to the largest; 0 free blocks leave the soft one out."""
    soft = (Candidate("soft C4", "C4", free_blocks),) if free_blocks else ()
    return (Candidate("C1", "none"), *soft, Candidate("C4", "C4"), Candidate("D4", "D4"))


def candidates_for(adapter: AdapterConfig) -> tuple[Candidate, ...]:
    """Return the candidates whose PREA is as described otherwise: in the same fields, softened by as many blocks, or 1.

    Regular fields see orientation already, so that there is no soft candidate. Where only adapters are trained, C1 has
    the same adapters, around the group of one element: all candidates then train alike.

    Raises:
        ConfigError: If blocks between regular fields are to be freed, or their backbone is to be frozen.
    """
    if adapter.fields == "trivial":
        smallest, *larger = candidates_of(adapter.free_blocks or 1)
        return (replace(smallest, group="C1") if adapter.train == "adapter" else smallest, *larger)
    if adapter.train == "adapter":
        raise ConfigError(
            "fields = 'regular' with train = 'adapter': a backbone in regular fields is trained from scratch, so that "
            "frozen candidates tell nothing. Train all of it, or take trivial fields."
        )
    if adapter.free_blocks:
        raise ConfigError(
            f"fields = 'regular' with free_blocks = {adapter.free_blocks}: regular fields see orientation already, so "
            "that there is no soft candidate. Leave free_blocks out, or take trivial fields."
        )
    return candidates_of(0)


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        chosen: The candidate.
        metric: The validation figure it was chosen by.
        scores: That figure of every pilot, by candidate, from the smallest group to the largest.
        means: Its mean by candidate.
        standard_error: Of the best candidate's mean: over pilots, and over which images there happen to be.
        images: Validation images.
        left_out: Candidates that could not be built, and why.
        sentence: All this in one sentence.
    """

    chosen: Candidate
    metric: str
    scores: dict[str, tuple[float, ...]]
    means: dict[str, float]
    standard_error: float
    images: int
    left_out: dict[str, str] = field(default_factory=dict)
    sentence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return asdict(self)


def decide(
    scores: Mapping[Candidate, Sequence[float]],
    *,
    counts: Sequence[int],
    metric: str,
    chance: float = 0.0,
    left_out: Mapping[str, str] | None = None,
) -> Choice:
    """Return the largest group within one standard error of the best.

    The standard error of the best mean m over s pilots joins two sources of chance,
    ``sqrt(var(pilots) / s + v)``: the seeds', and which images there happen to be, ``v = sampling_variance(...)``.

    Args:
        scores: By candidate, from the smallest group to the largest, the figure of every pilot, in [0, 1].
        counts: Validation images of every class that each figure is over.
        metric: What the figures are, a key of ``SHARES``.
        chance: The figure of a model that has learnt nothing; pilots that all come out like it decide nothing.
        left_out: Candidates that could not be built, and why; for the record.

    Raises:
        ConfigError: If there is no figure, one is undefined or out of range, the metric is unknown, or no candidate is
            better than chance by more than a standard error.
    """
    _require_figures(scores, sum(counts), metric)
    means = {candidate: statistics.fmean(figures) for candidate, figures in scores.items()}
    best = max(means, key=lambda candidate: means[candidate])
    pilots = scores[best]
    by_seed = statistics.variance(pilots) / len(pilots) if len(pilots) > 1 else 0.0
    error = math.sqrt(by_seed + sampling_variance(means[best], counts, metric))
    if means[best] <= chance + error:
        raise ConfigError(
            f"no pilot learnt anything: the best mean {SHARES[metric]} is {means[best]:.3f} ({best.name}; standard "
            f"error {error:.3f}), chance is {chance:.3f}. Make the pilots longer "
            "(pilot_rounds, --pilot-epochs), or name the group."
        )
    # Rounding of the mean must not decide.
    close = [candidate for candidate, mean in means.items() if mean >= means[best] - error - 1e-12]
    choice = Choice(
        chosen=close[-1],
        metric=metric,
        scores={candidate.name: tuple(figures) for candidate, figures in scores.items()},
        means={candidate.name: mean for candidate, mean in means.items()},
        standard_error=error,
        images=sum(counts),
        left_out=dict(left_out or {}),
    )
    return replace(choice, sentence=_sentence(choice, best.name, len(pilots)))


def sampling_variance(figure: float, counts: Sequence[int], metric: str) -> float:
    """Return the variance that a figure has because other images might have been drawn.

    - Accuracy, of n images: ``m (1 - m) / n``.
    - Balanced accuracy, the mean of C classes' shares, each of its n_c images: ``m (1 - m) sum(1 / n_c) / C^2``, every
      class taken to be answered as well as the mean. A class of five images weighs as much as one of five hundred.
    - AUROC, the mean over classes of one against the rest: ``sum(v_c) / C^2``, with v_c the variance that Hanley and
      McNeil (1982, "The meaning and use of the area under a ROC curve") give for one curve; curves of three classes
      and more are taken to be independent, those of two are one curve: ``v_c``.

    Args:
        figure: m, in [0, 1].
        counts: Images of every class, one at least; classes without images are no part of the mean.
        metric: A key of ``SHARES``.

    Raises:
        ConfigError: If the metric is unknown or there is no image.
    """
    _require_metric(metric)
    if sum(counts) < 1:
        raise ConfigError("there is no validation image to choose a group by. Give some, or name the group.")
    present, total = [count for count in counts if count > 0], sum(counts)
    if metric == "accuracy":
        return figure * (1 - figure) / total
    if metric == "balanced_accuracy":
        return figure * (1 - figure) * sum(1 / count for count in present) / len(present) ** 2
    one, other = figure / (2 - figure), 2 * figure**2 / (1 + figure)
    spread, below, above = figure * (1 - figure), one - figure**2, other - figure**2
    split = [(count, total - count) for count in present if count < total]
    each = [(spread + (its - 1) * below + (rest - 1) * above) / (its * rest) for its, rest in split]
    if not each:
        return 0.0
    return sum(each) / (2 if len(each) == 2 else len(each) ** 2)


def _require_figures(scores: Mapping[Candidate, Sequence[float]], images: int, metric: str) -> None:
    _require_metric(metric)
    for candidate, figures in scores.items():
        bad = [figure for figure in figures if not 0 <= figure <= 1]
        if bad or not figures:
            got = bad[0] if bad else "no pilot"
            raise ConfigError(
                f"the {SHARES[metric]} of the pilots of {candidate.name} is {got}, expected numbers between 0 and 1. "
                "Give more validation images of every class, or name the group."
            )
    if not scores or images < 1:
        raise ConfigError("there is no pilot to choose a group by. Give validation images, or name the group.")


def _require_metric(metric: str) -> None:
    if metric not in SHARES:
        raise ConfigError(f"groups are not chosen by {metric!r}, expected one of {', '.join(SHARES)}.")


def choose_group(
    build: Callable[[Candidate, int], nn.Module],
    train: ImageSet,
    val: ImageSet,
    config: FitConfig,
    *,
    candidates: Sequence[Candidate] | None = None,
    seeds: int = 2,
    on_pilot: Callable[[Candidate, int, float], None] | None = None,
) -> Choice:
    """Train short pilots of every candidate at one place and decide.

    Args:
        build: (candidate, seed) -> a fresh model, normalised images -> logits.
        train: Images the pilots train on.
        val: Images they are compared on, never turned.
        config: Of one pilot, ``config.choose`` one of ``SHARES``; seeds count up from its seed. Its views lose their
            turns.
        candidates: From the smallest group to the largest; ``candidates_of()`` if None.
        seeds: Pilots of every candidate.
        on_pilot: Called with (candidate, seed, figure) after each.

    Raises:
        ConfigError: If nothing can be decided; see ``decide``.
        ModelError: If the first candidate, the plain model, cannot be built.
        DataError: If there are no images.
        RunError: If a pilot diverges.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, expected at least 1 pilot of every candidate.")
    _require_metric(config.choose)
    scores: dict[Candidate, list[float]] = {}
    left_out: dict[str, str] = {}
    for candidate in candidates or candidates_of():
        try:
            models = [build(candidate, config.seed + number) for number in range(seeds)]
        except ModelError as error:
            if not scores:
                raise
            left_out[candidate.name] = str(error)
            continue
        scores[candidate] = []
        for number, model in enumerate(models):
            pilot = replace(config, seed=config.seed + number, augment=_unturned(config))
            figure = float(fit(model, train, val, pilot).best.figures[config.choose])
            scores[candidate].append(figure)
            if on_pilot is not None:
                on_pilot(candidate, pilot.seed, figure)
    counts, chance = np.bincount(val.targets).tolist(), chance_of(val.targets, config.choose)
    return decide(scores, counts=counts, metric=config.choose, chance=chance, left_out=left_out)


def chance_of(targets: npt.NDArray[np.int64], metric: str) -> float:
    """Return the figure of a model that gives every image the same answer."""
    if metric == "auroc":
        return 0.5
    counts = np.bincount(targets)
    return float(counts.max() / counts.sum()) if metric == "accuracy" else 1 / int((counts > 0).sum())


def _unturned(config: FitConfig) -> Any:
    return "shifts" if config.augment.endswith("shifts") else "none"


def _sentence(choice: Choice, best: str, pilots: int) -> str:
    words, chosen, error = SHARES[choice.metric], choice.chosen.name, choice.standard_error
    over = f"over {pilots} pilot{'s' if pilots > 1 else ''} and {choice.images} validation images"
    if chosen == best:
        text = f"{chosen}: mean {words} {choice.means[chosen]:.3f} {over} is the best"
    else:
        text = (
            f"{chosen}: mean {words} {choice.means[chosen]:.3f} {over} is within one standard error ({error:.3f}) of "
            f"the best, {best} with {choice.means[best]:.3f}"
        )
    names = list(choice.means)
    larger = names[names.index(chosen) + 1 :]
    if larger:
        listed = ", ".join(f"{name} {choice.means[name]:.3f}" for name in larger)
        text += f"; every larger group falls short of it by more ({listed}; standard error {error:.3f})"
    elif len(names) > 1:
        text += ", and no group is larger"
    if choice.left_out:
        text += f"; not tried: {', '.join(choice.left_out)}"
    return f"{text}."
