"""How good a model is, at one site and over all of them, without torch; conventions in docs/metrics.md.

Single figures (Brier score, F1, calibration error, ...) are listed in ``popmi_core.metrics.figures``.
"""

from popmi_core.metrics.accumulators import ScoreAccumulator, TurningAccumulator
from popmi_core.metrics.bounds import Bounded
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.discrimination import auroc_macro_ovr
from popmi_core.metrics.pooling import PooledMetrics, pool_summaries
from popmi_core.metrics.summarise import summarise_scores
from popmi_core.metrics.summary import ScoreSummary
from popmi_core.metrics.turning import turning_figures

__all__ = [
    "Bounded",
    "PooledMetrics",
    "ScoreAccumulator",
    "ScoreSummary",
    "TurningAccumulator",
    "auroc_macro_ovr",
    "classification_metrics",
    "pool_summaries",
    "summarise_scores",
    "turning_figures",
]
