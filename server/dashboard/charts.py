"""Turn a run's figures into curves: the global model, every site, the worst one marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.dashboard.blocks import Block
from server.dashboard.words import N_

LABELS = {
    "auroc": N_("AUROC"),
    "auprc": N_("AUPRC"),
    "macro_f1": N_("Macro F1"),
    "balanced_accuracy": N_("Balanced accuracy"),
    "accuracy": N_("Accuracy"),
    "ece": N_("Calibration error (ECE)"),
    "brier": N_("Brier score"),
    "nll": N_("Loss (negative log-likelihood)"),
    "loss": N_("Loss"),
    "rotation_consistency": N_("Rotation consistency"),
    "rotation_variation": N_("Rotation variation"),
    "num_examples": N_("Examples"),
    "train_loss": N_("Training loss"),
    "epsilon": N_("Privacy budget spent (epsilon)"),
    "weights": N_("Weights in the average"),
    "seconds": N_("Seconds a round"),
    "bytes": N_("Megabytes a round"),
}
EXPLAINED = {
    "auroc": N_("macro, one class against the rest; higher is better"),
    "auprc": N_("macro, area under precision and recall; higher is better"),
    "macro_f1": N_("mean F1 of the classes; higher is better"),
    "balanced_accuracy": N_("mean recall of the classes; higher is better"),
    "nll": N_("nats per image; lower is better"),
    "loss": N_("lower is better"),
    "ece": N_("gap between confidence and accuracy; lower is better"),
    "rotation_consistency": N_(
        "share of images whose top class is the same at 0°, 90°, 180° and 270°; higher is better"
    ),
    "train_loss": N_("mean over the site's local epochs; lower is better"),
    "epsilon": N_("spent at each site since the study began; lower is more private"),
    "weights": N_("share of each site in the round's new model; the shares of a round add up to 1"),
    "seconds": N_("training and evaluation: all sites added up; fusion and total: at the server"),
    "bytes": N_("model and answers, all sites added up"),
}
CURVES = (
    "auroc", "auprc", "macro_f1", "balanced_accuracy", "nll", "loss", "ece", "rotation_consistency",
)  # fmt: skip
FALLING = frozenset({"nll", "loss", "ece", "brier", "train_loss", "epsilon"})
SPLITS = ("test", "val", "train")
SITE_FIGURES = ("train_loss", "epsilon")
"""What sites report of their training, whatever the split."""
FIXED = {"global": 0, "external": -1}
"""Scopes that are no sites, with their style."""


@dataclass(frozen=True)
class Line:
    """One curve; ``kind`` is global, external, site or other, ``style`` its colour and dash (0 is the global one)."""

    scope: str
    kind: str
    style: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """Curves over rounds; ``worst`` names the site that is worst at the newest round with figures.

    ``last`` holds every line's last defined value, ``total`` how many rounds there are in all, also where ``rounds``
    is only the newest of them.
    """

    id: str
    title: str
    about: str
    rounds: tuple[int, ...]
    lines: tuple[Line, ...]
    worst: str | None
    total: int = 0
    last: Mapping[str, float | None] = field(default_factory=dict)

    def newest(self, scope: str) -> float | None:
        """Return a line's last defined value."""
        return self.last.get(scope)


def label(name: str) -> str:
    """Return how a metric is called on a page."""
    return LABELS.get(name, name.replace("_", " "))


def splits_by(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return splits by their number of figures, the one with most first (of equals: test, val, train)."""
    rank = {split: place for place, split in enumerate(SPLITS)}
    return tuple(sorted(counts, key=lambda split: (-counts[split], rank.get(split, len(rank)))))


def charts_of(
    blocks: Mapping[str, Block], styles: Mapping[str, int], *, since: int = 0, names: Sequence[str] | None = None
) -> tuple[Chart, ...]:
    """Return a chart for each block, in the order of ``names``; only rounds from ``since`` on are in its lines."""
    order = [*CURVES, *SITE_FIGURES] if names is None else names
    return tuple(
        _chart(name, blocks[name], styles, since) for name in order if name in blocks and blocks[name].present.any()
    )


def styles_of(scopes: Iterable[str]) -> dict[str, int]:
    """Return the same style for a scope in every chart: sites are numbered by name."""
    sites = sorted(set(scopes) - set(FIXED))
    return {scope: place + 1 for place, scope in enumerate(sites)} | FIXED


def _chart(name: str, block: Block, styles: Mapping[str, int], since: int) -> Chart:
    rounds = np.flatnonzero(block.present)
    shown = rounds[rounds >= since]
    places = sorted(range(len(block.scopes)), key=lambda place: _rank(block.scopes[place]))
    lines = []
    for place in places:
        scope = block.scopes[place]
        values = tuple(None if math.isnan(value) else value for value in block.values[place, shown].tolist())
        kind = scope if scope in FIXED else "site"
        lines.append(Line(scope, kind, styles.get(scope, 1), values))
    return Chart(
        id=name,
        title=label(name),
        about=EXPLAINED.get(name, ""),
        rounds=tuple(shown.tolist()),
        lines=tuple(lines),
        worst=worst_site(block, name),
        total=int(rounds.size),
        last={block.scopes[place]: _last(block, place) for place in places},
    )


def _rank(scope: str) -> tuple[bool, bool, str]:
    return (scope != "global", scope == "external", scope)


def _last(block: Block, place: int) -> float | None:
    known = np.flatnonzero(~np.isnan(block.values[place]))
    return float(block.values[place, known[-1]]) if known.size else None


def worst_site(block: Block, name: str) -> str | None:
    """Return the site with the worst figure in the newest round that compares two; None when all are equal."""
    places = [place for place, scope in enumerate(block.scopes) if scope not in FIXED]
    values = block.values[places]
    comparable = np.flatnonzero((~np.isnan(values)).sum(axis=0) >= 2)
    if not comparable.size:
        return None
    here = {
        block.scopes[place]: float(value)
        for place, value in zip(places, values[:, comparable[-1]], strict=True)
        if not math.isnan(value)
    }
    if len(set(here.values())) == 1:
        return None
    pick = max if name in FALLING else min
    return pick(sorted(here), key=lambda scope: here[scope])
