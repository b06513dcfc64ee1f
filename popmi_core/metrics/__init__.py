"""How good a model is, at one site and over all of them, without torch; conventions in docs/metrics.md."""

from popmi_core.metrics.calibration import expected_calibration_error
from popmi_core.metrics.classification import classification_metrics
from popmi_core.metrics.discrimination import auprc_macro, auroc_macro_ovr
from popmi_core.metrics.rotation import rotation_consistency

__all__ = [
    "auprc_macro",
    "auroc_macro_ovr",
    "classification_metrics",
    "expected_calibration_error",
    "rotation_consistency",
]
