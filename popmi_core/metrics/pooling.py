"""Figures over all sites from their summaries, each with bounds that hold for the same patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from popmi_core.errors import UpdateError
from popmi_core.metrics.bounds import (
    UNKNOWN,
    Bounded,
    auroc_from_runs,
    average_precision_from_runs,
    bounded,
    mean_bounded,
)
from popmi_core.metrics.histograms import Runs, join_runs
from popmi_core.metrics.hits import recall_and_f1
from popmi_core.metrics.reliability import ReliabilityBin, ece_from_runs, reliability_bins
from popmi_core.metrics.summary import ScoreSummary


@dataclass(frozen=True)
class PooledMetrics:
    """Figures over all sites; every one is a `Bounded` with value, lower, upper and resolution.

    Accuracy and ECE are about all patients of the sites that tell anything. The other four are means over
    ``classes``; the figure of a class is about all patients of the sites that tell of this class. The exact figure
    over just these patients lies inside the bounds. A figure about nobody has a NaN value and bounds 0..1.

    Attributes:
        num_examples: Patients of the sites that tell anything.
        classes: Classes that at least one site tells of.
        support: Patients of each of ``classes``, of the sites that tell of it.
        auroc_per_class: One-vs-rest AUROC of each of ``classes``.
    """

    num_examples: int
    classes: tuple[int, ...]
    support: tuple[int, ...]
    auroc: Bounded
    auprc: Bounded
    macro_f1: Bounded
    balanced_accuracy: Bounded
    accuracy: Bounded
    ece: Bounded
    auroc_per_class: tuple[Bounded, ...]

    def as_dict(self) -> dict[str, float]:
        """Return ``auroc``, ``auroc_lower``, ``auroc_upper`` and so on for the six figures."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        figures = {name: figure for name, figure in named.items() if isinstance(figure, Bounded)}
        return {
            f"{name}{suffix}": number
            for name, figure in figures.items()
            for suffix, number in (("", figure.value), ("_lower", figure.lower), ("_upper", figure.upper))
        }


def pool_summaries(summaries: Sequence[ScoreSummary]) -> PooledMetrics:
    """Pool the sites' summaries; their order does not change a bit of the result.

    Raises:
        UpdateError: If there is no summary or they differ in the number of classes.
    """
    widths = sorted({summary.num_classes for summary in summaries})
    if len(widths) != 1:
        raise UpdateError(
            f"{len(summaries)} score summaries have class counts {widths}, expected one or more summaries with the "
            "same classes. Check that at least one site answered and that all use the federation's labels."
        )
    # One order for every sum below: floats added in another order differ in the last bit.
    summaries = sorted(summaries, key=_content)
    told = np.stack([summary.told for summary in summaries])
    classes = tuple(np.flatnonzero(told.any(axis=0)).tolist())
    runs = [_runs_of(summaries, c) for c in classes]
    auroc = tuple(auroc_from_runs(*pair) for pair in runs)
    top_one = [recall_and_f1(summaries, c) for c in classes]
    return PooledMetrics(
        num_examples=sum(summary.num_examples for summary in summaries),
        classes=classes,
        support=tuple(int(positive.total) for positive, _ in runs),
        auroc=mean_bounded(list(auroc)),
        auprc=mean_bounded([average_precision_from_runs(*pair) for pair in runs]),
        macro_f1=mean_bounded([f1 for _, f1 in top_one]),
        balanced_accuracy=mean_bounded([recall for recall, _ in top_one]),
        accuracy=_accuracy(summaries),
        ece=_ece(summaries),
        auroc_per_class=auroc,
    )


def _content(summary: ScoreSummary) -> bytes:
    return b"".join(values.tobytes() for values in summary.to_arrays().values())


def _runs_of(summaries: Sequence[ScoreSummary], column: int) -> tuple[Runs, Runs]:
    return join_runs([s.positive[column] for s in summaries]), join_runs([s.negative[column] for s in summaries])


def _accuracy(summaries: Sequence[ScoreSummary]) -> Bounded:
    total = sum(summary.num_examples for summary in summaries)
    least, most = (sum(summary.correct[side] for summary in summaries) for side in (0, 1))
    return bounded((least + most) / 2 / total, least / total, most / total) if total else UNKNOWN


def calibration_of(summaries: Sequence[ScoreSummary]) -> tuple[tuple[ReliabilityBin, ...], Bounded]:
    """Return the reliability diagram over these sites' patients, and its ECE with bounds; no bins of too few.

    The ECE is that of 15 bins whatever the number of bins returned.
    """
    summaries = sorted(summaries, key=_content)
    wrong, right, few = _confidences(summaries)
    return reliability_bins(wrong, right, **few), ece_from_runs(wrong, right, **few)


def _ece(summaries: Sequence[ScoreSummary]) -> Bounded:
    wrong, right, few = _confidences(summaries)
    return ece_from_runs(wrong, right, **few)


def _confidences(summaries: Sequence[ScoreSummary]) -> tuple[Runs, Runs, dict[str, int]]:
    """Return confidence over misses and hits, and how many of either may lie among the other."""
    few = {
        "few_wrong": sum(s.num_examples - s.correct[0] for s in summaries if not s.wrong.total),
        "few_correct": sum(s.correct[1] for s in summaries if not s.right.total),
    }
    return join_runs([s.wrong for s in summaries]), join_runs([s.right for s in summaries]), few
