"""What a model is worth on a site's own images: figures, and a summary that can be pooled over sites."""

from __future__ import annotations

import numpy as np
from torch import nn

from popmi_core.data import ImageSet
from popmi_core.metrics import ScoreSummary, classification_metrics, rotation_consistency, summarise_scores
from popmi_core.metrics.rotation import rotation_total_variation
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.models import predict


def evaluate_images(model: nn.Module, data: ImageSet) -> tuple[dict[str, float], ScoreSummary]:
    """Return the figures of one split and its poolable summary.

    Beside the classification figures: ``rotation_consistency`` and ``rotation_variation`` over exact turns by 0, 90,
    180 and 270 degrees (four passes), and ``num_examples``. Of fewer than ``MIN_CELL`` images only their number is
    told: a figure over one image is that patient's score.
    """
    scores = predict(model, data.images)
    summary = summarise_scores(scores, data.targets)
    if len(data) < MIN_CELL:
        return {"num_examples": float(len(data))}, summary
    turned = np.stack([scores, *(predict(model, data.images, quarter_turns=turns) for turns in (1, 2, 3))])
    figures = classification_metrics(scores, data.targets)
    figures |= {
        "rotation_consistency": rotation_consistency(turned),
        "rotation_variation": rotation_total_variation(turned),
        "num_examples": float(len(data)),
    }
    return figures, summary
