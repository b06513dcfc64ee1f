"""The single figures of one evaluation, a function each; ``classification_metrics`` gives those of scores together."""

from popmi_core.metrics.calibration import brier, expected_calibration_error, negative_log_likelihood
from popmi_core.metrics.discrimination import accuracy, auprc_macro, auroc_macro_ovr, balanced_accuracy, macro_f1
from popmi_core.metrics.rotation import rotation_consistency, rotation_total_variation

__all__ = [
    "accuracy",
    "auprc_macro",
    "auroc_macro_ovr",
    "balanced_accuracy",
    "brier",
    "expected_calibration_error",
    "macro_f1",
    "negative_log_likelihood",
    "rotation_consistency",
    "rotation_total_variation",
]
