"""All figures of one evaluation under the names of the round record."""

from __future__ import annotations

from numpy.typing import ArrayLike

from popmi_core.metrics.calibration import brier, expected_calibration_error, negative_log_likelihood
from popmi_core.metrics.checks import check_probabilities, check_scores
from popmi_core.metrics.discrimination import accuracy, auprc_macro, auroc_macro_ovr, balanced_accuracy, macro_f1


def classification_metrics(scores: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """Return auroc, auprc, macro_f1, balanced_accuracy, accuracy, ece, brier and nll (nats).

    Args:
        scores: Probabilities, shape [n, C]; the first of tied classes is the prediction.
        target: Shape [n], class numbers.

    Returns:
        One float each; auroc and auprc are NaN if no class has both positives and negatives.

    Raises:
        UpdateError: If shapes, numbers or class numbers are wrong, or scores are not probabilities.
    """
    values, labels = check_scores(scores, target)
    check_probabilities(values)
    preds, num_classes = values.argmax(axis=1), values.shape[1]
    return {
        "auroc": auroc_macro_ovr(values, labels),
        "auprc": auprc_macro(values, labels),
        "macro_f1": macro_f1(preds, labels, num_classes),
        "balanced_accuracy": balanced_accuracy(preds, labels, num_classes),
        "accuracy": accuracy(preds, labels, num_classes),
        "ece": expected_calibration_error(values, labels),
        "brier": brier(values, labels),
        "nll": negative_log_likelihood(values, labels),
    }
