"""Turn a record's figures into curves: the global model, every site, the worst one marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.store import MetricRow, SiteRow

LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
    "nll": "Loss (negative log-likelihood)",
    "loss": "Loss",
    "rotation_consistency": "Rotation consistency",
    "rotation_variation": "Rotation variation",
    "num_examples": "Examples",
    "train_loss": "Training loss",
    "epsilon": "Privacy budget spent (epsilon)",
}
_EXPLAINED = {
    "auroc": "macro, one class against the rest; higher is better",
    "balanced_accuracy": "mean recall of the classes; higher is better",
    "nll": "nats per image; lower is better",
    "loss": "lower is better",
    "ece": "gap between confidence and accuracy; lower is better",
    "rotation_consistency": "share of images whose top class is the same at 0°, 90°, 180° and 270°; higher is better",
    "train_loss": "mean over the site's local epochs; lower is better",
    "epsilon": "spent at each site since the study began; lower is more private",
}
CURVES = ("auroc", "balanced_accuracy", "nll", "loss", "ece", "rotation_consistency")
FALLING = frozenset({"nll", "loss", "ece", "brier", "train_loss", "epsilon"})
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Line:
    """One curve; ``kind`` is global, external or site, ``style`` its colour and dash (0 is the global one)."""

    scope: str
    kind: str
    style: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """Curves over rounds; ``worst`` names the site that is worst at the newest round with figures."""

    id: str
    title: str
    about: str
    rounds: tuple[int, ...]
    lines: tuple[Line, ...]
    worst: str | None

    def newest(self, scope: str) -> float | None:
        """Return a line's last defined value."""
        for line in self.lines:
            if line.scope == scope:
                return next((value for value in reversed(line.values) if value is not None), None)
        return None


SITE_FIGURES = ("train_loss", "epsilon")
"""What sites report of their training, whatever the split."""


def label(name: str) -> str:
    """Return how a metric is called on a page."""
    return LABELS.get(name, name.replace("_", " "))


def splits_of(metrics: Iterable[MetricRow]) -> tuple[str, ...]:
    """Return the splits with figures, the one with most of them first (of equals: test, val, train)."""
    counts: dict[str, int] = {}
    for row in metrics:
        if row.scope != "external":
            counts[row.split] = counts.get(row.split, 0) + 1
    rank = {split: place for place, split in enumerate(SPLITS)}
    return tuple(sorted(counts, key=lambda split: (-counts[split], rank.get(split, len(rank)))))


def build_charts(metrics: Sequence[MetricRow], sites: Sequence[SiteRow], split: str) -> tuple[Chart, ...]:
    """Return the charts of one split, the external test set beside ``test``, then what training itself reports."""
    order = sorted({row.scope for row in metrics} | {row.site for row in sites} - {"global", "external"})
    curves: dict[str, dict[str, dict[int, float | None]]] = {}
    for row in metrics:
        if row.split == split or (row.scope == "external" and split == "test"):
            curves.setdefault(row.name, {}).setdefault(row.scope, {})[row.server_round] = row.value
    for site in sites if split != "train" else ():
        for name in SITE_FIGURES:
            value = getattr(site, name)
            if value is not None:
                curves.setdefault(name, {}).setdefault(site.site, {})[site.server_round] = value
    names = [*CURVES, *SITE_FIGURES]
    styles = {scope: place + 1 for place, scope in enumerate(item for item in order if item not in _FIXED)} | _FIXED
    return tuple(_chart(name, curves[name], styles) for name in names if name in curves)


_FIXED = {"global": 0, "external": -1}


def _chart(name: str, curves: dict[str, dict[int, float | None]], styles: dict[str, int]) -> Chart:
    rounds = tuple(sorted({number for curve in curves.values() for number in curve}))
    order = sorted(curves, key=lambda scope: (scope != "global", scope == "external", scope))
    lines = tuple(
        Line(
            scope,
            scope if scope in _FIXED else "site",
            styles[scope],
            tuple(curves[scope].get(item) for item in rounds),
        )
        for scope in order
    )
    return Chart(name, label(name), _EXPLAINED.get(name, ""), rounds, lines, worst_site(curves, name))


def worst_site(curves: dict[str, dict[int, float | None]], name: str) -> str | None:
    """Return the site with the worst figure in the newest round that compares two; None when all are equal."""
    sites = {scope: curve for scope, curve in curves.items() if scope not in _FIXED}
    for number in sorted({item for curve in sites.values() for item in curve}, reverse=True):
        here = {scope: value for scope, curve in sites.items() if (value := curve.get(number)) is not None}
        if len(here) >= 2:
            if len(set(here.values())) == 1:
                return None
            pick = max if name in FALLING else min
            return pick(sorted(here), key=lambda scope: here[scope])
    return None
