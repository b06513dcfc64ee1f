"""What a model is worth on a site's own images: figures and a summary that can be pooled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from popmi_core.data import ImageSet
from popmi_core.metrics import ScoreSummary, classification_metrics, rotation_consistency, summarise_scores
from popmi_core.models import normalise

EVALUATION_BATCH = 256


def predict(model: nn.Module, images: npt.NDArray[np.uint8], *, quarter_turns: int = 0) -> npt.NDArray[np.float64]:
    """Return class probabilities [n, classes] of images [n, H, W, 3], first turned by quarter_turns x 90 degrees."""
    model.eval()
    scores = []
    with torch.inference_mode():
        for start in range(0, len(images), EVALUATION_BATCH):
            batch = normalise(torch.from_numpy(images[start : start + EVALUATION_BATCH]), model)
            logits = model(torch.rot90(batch, quarter_turns, (2, 3)))
            scores.append(torch.softmax(logits.double(), dim=1).numpy())
    return np.concatenate(scores)


def evaluate_split(
    model: nn.Module, data: ImageSet, *, with_rotations: bool
) -> tuple[dict[str, float], ScoreSummary]:
    """Return the figures of one split and its poolable summary.

    ``rotation_consistency`` is the share of images with one top-1 class at 0, 90, 180 and 270 degrees;
    it takes four passes, so it is computed where ``with_rotations`` asks for it.
    """
    scores = predict(model, data.images)
    figures = classification_metrics(scores, data.targets)
    if with_rotations:
        turned = [scores, *(predict(model, data.images, quarter_turns=turn) for turn in (1, 2, 3))]
        consistency, variation = rotation_consistency(np.stack(turned))
        figures |= {"rotation_consistency": consistency, "rotation_variation": variation}
    return figures, summarise_scores(scores, data.targets)
