"""How good a model is, at one site and over all of them, without torch; conventions in docs/metrics.md."""

from popmi_core.metrics.bounds import Bounded
from popmi_core.metrics.calibration import expected_calibration_error
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.discrimination import auprc_macro, auroc_macro_ovr
from popmi_core.metrics.pooling import PooledMetrics, pool_summaries
from popmi_core.metrics.rotation import rotation_consistency
from popmi_core.metrics.summarise import summarise_scores
from popmi_core.metrics.summary import ScoreSummary

__all__ = [
    "Bounded",
    "PooledMetrics",
    "ScoreSummary",
    "auprc_macro",
    "auroc_macro_ovr",
    "classification_metrics",
    "expected_calibration_error",
    "pool_summaries",
    "rotation_consistency",
    "summarise_scores",
]
