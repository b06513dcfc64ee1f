"""What the steps of a round hand to one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from popmi_core.fusion import Fused
from popmi_core.matching.moves import LayerTold
from popmi_core.matching.statistics import CrossStatistics
from popmi_core.measure import TurnedTold
from popmi_core.metrics import Bounded, PooledMetrics, ScoreSummary
from popmi_core.metrics.confusions import Told
from popmi_core.protocol import Report

POOLED_FIGURES = ("auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece")
Figure = float | tuple[float, float, float]


def bounded_figures(pooled: PooledMetrics) -> dict[str, Bounded]:
    """Return the pooled figures by name, each with its bounds."""
    return {name: getattr(pooled, name) for name in POOLED_FIGURES}


@dataclass(frozen=True)
class SiteOutcome:
    """How one site fared in one phase of a round."""

    site: str
    outcome: str
    reason: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    report: Report | None = None


@dataclass(frozen=True)
class TrainedUpdate:
    """A site's model that passed every check."""

    site: str
    state: Mapping[str, Tensor]
    num_examples: int
    control_change: Mapping[str, Tensor] | None = None
    grams: Mapping[str, Tensor] = field(default_factory=dict)
    report: Report | None = None
    statistics: CrossStatistics | None = None


@dataclass
class Validated:
    """Updates by site name in alphabetical order, and one outcome for every site that was asked."""

    updates: list[TrainedUpdate] = field(default_factory=list)
    outcomes: list[SiteOutcome] = field(default_factory=list)

    def quarantine(self, site: str, reason: str) -> None:
        """Note that a site's update turned out to be unusable after all, and let go of it."""
        self.updates[:] = [item for item in self.updates if item.site != site]
        self.outcomes = [
            replace(item, outcome="quarantined", reason=reason) if item.site == site else item for item in self.outcomes
        ]


@dataclass(frozen=True)
class MatchedUpdate:
    """A site's model in the reference's basis; gains are relative decreases of squared distance by layer.

    ``moves``: by what angle, and how many of how many units, each layer was moved.
    """

    site: str
    state: Mapping[str, Tensor]
    num_examples: int
    gains: dict[str, float] = field(default_factory=dict)
    identity: dict[str, bool] = field(default_factory=dict)
    note: str = ""
    grams: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: CrossStatistics | None = None
    moves: LayerTold = field(default_factory=LayerTold)


@dataclass(frozen=True)
class Judgement:
    """One candidate at one site's validation images: their number, mean loss (nats), accuracy and AUROC."""

    num_examples: int
    loss: float
    accuracy: float | None = None
    auroc: float | None = None


@dataclass
class Evaluation:
    """Figures by site and split, and pooled by split.

    By split and site also score summaries and confusion tables, and by site what turned images changed.
    """

    sites: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    pooled: dict[str, PooledMetrics] = field(default_factory=dict)
    external: dict[str, float] = field(default_factory=dict)
    summaries: dict[str, dict[str, ScoreSummary]] = field(default_factory=dict)
    tables: dict[str, dict[str, Told]] = field(default_factory=dict)
    turned: dict[str, TurnedTold] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundResult:
    """All that happened in one round; ``fused`` is None for a void one, ``judged`` holds candidates by name and site.

    Seconds are wall time at the server; ``seconds_judge``, what sites took between training and evaluation, is part of
    ``seconds_combine``. ``equivariance``: what the global model's weights are worth under the group it promises to
    respect; None for a model without one. ``similarity``: cosines and norms of the sites' updates, where measured.
    """

    server_round: int
    seconds: float
    seconds_combine: float
    train: list[SiteOutcome]
    evaluate: list[SiteOutcome]
    matched: list[MatchedUpdate]
    fused: Fused | None
    note: str
    evaluation: Evaluation
    judged: Mapping[str, Mapping[str, Judgement]] = field(default_factory=dict)
    seconds_judge: float = 0.0
    equivariance: Mapping[str, Any] | None = None
    similarity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Combined:
    """What became of a round's usable updates: as matched, the fused model (None where void, and why), how alike."""

    matched: list[MatchedUpdate] = field(default_factory=list)
    fused: Fused | None = None
    note: str = ""
    similarity: Mapping[str, Any] | None = None


def taken_out(updates: list[TrainedUpdate]) -> Iterator[TrainedUpdate]:
    """Yield the updates and let go of each: a site's model is held once, raw or matched."""
    while updates:
        yield updates.pop(0)


def without_models(matched: Sequence[MatchedUpdate]) -> list[MatchedUpdate]:
    """Return what a record needs of matched updates."""
    return [replace(update, state={}, grams={}, statistics=None) for update in matched]


def pooled_figures(evaluation: Evaluation) -> dict[str, dict[str, Figure]]:
    """Return figures pooled over the sites, by split: value and bounds, and means weighted by images where no pool is.

    The rotation consistency of all images is exactly the mean of the sites' weighted by their images; so is the loss.
    A site with too few images to tell figures of is not in these means.
    """
    result: dict[str, dict[str, Figure]] = {}
    for split, pooled in evaluation.pooled.items():
        result[split] = {name: (item.value, item.lower, item.upper) for name, item in bounded_figures(pooled).items()}
        told = [figures[split] for figures in evaluation.sites.values() if split in figures]
        # Training images are not turned.
        for name in ("nll",) if split == "train" else ("nll", "rotation_consistency", "rotation_variation"):
            result[split][name] = _weighted([(item.get(name), item.get("num_examples") or 0.0) for item in told])
    return result


def _weighted(pairs: Sequence[tuple[float | None, float]]) -> float:
    known = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    total = math.fsum(weight for _, weight in known)
    return math.fsum(value * weight for value, weight in known) / total if total else math.nan


def round_notes(done: RoundResult) -> dict[str, object]:
    """Return what the record keeps of a round beside figures: weights, rules, why it was void, its symmetry."""
    fused = done.fused
    return {
        "weights": dict(fused.weights) if fused is not None else {},
        "rules": dict(fused.notes) if fused is not None else {},
        # Who won among the candidates, and what the worst-served site loses by it (nats of validation loss).
        **({"chosen": fused.chosen, "regret": fused.regret} if fused is not None and fused.chosen else {}),
        # Figures over all sites are means over these many classes; a class with few images is told of by no site.
        "classes_pooled": {split: len(pooled.classes) for split, pooled in done.evaluation.pooled.items()},
        "support_pooled": {split: list(pooled.support) for split, pooled in done.evaluation.pooled.items()},
        **({"void": done.note} if done.note else {}),
        **({"equivariance": dict(done.equivariance)} if done.equivariance is not None else {}),
    }
