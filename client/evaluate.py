"""What a model is worth on a site's own images: figures, and a summary that can be pooled over sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from popmi_core.data import ImageSet
from popmi_core.metrics import ScoreSummary, classification_metrics, summarise_scores
from popmi_core.metrics.confusions import Told, confusion_to_tell
from popmi_core.metrics.figures import rotation_consistency, rotation_total_variation
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.models import predict

JUDGED = ("nll", "accuracy", "auroc")


class Ensemble(nn.Module):
    """Several models of one architecture; the softmax of its logits is the mean of theirs (in float64)."""

    def __init__(self, model: nn.Module, states: Sequence[dict[str, Tensor]]) -> None:
        super().__init__()
        self.model, self.states = model, list(states)
        self.pretrained_cfg = getattr(model, "pretrained_cfg", None)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the logarithm of the mean probability of every class."""
        scores = [torch.log_softmax(functional_call(self.model, state, (images,)).double(), 1) for state in self.states]
        return torch.logsumexp(torch.stack(scores), dim=0)


def evaluate_images(
    model: nn.Module, data: ImageSet, *, turned: bool = True
) -> tuple[dict[str, float], ScoreSummary, Told]:
    """Return the figures of one split, its poolable summary, and its confusion table with small cells hidden.

    Beside the classification figures: ``num_examples`` and, where ``turned``, ``rotation_consistency`` and
    ``rotation_variation`` over exact turns by 0, 90, 180 and 270 degrees (three more passes). Of fewer than
    ``MIN_CELL`` images only their number is told: a figure over one image is that patient's score.
    """
    scores = predict(model, data.images)
    summary = summarise_scores(scores, data.targets)
    table = confusion_to_tell(scores, data.targets, summary)
    if len(data) < MIN_CELL:
        return {"num_examples": float(len(data))}, summary, table
    figures = classification_metrics(scores, data.targets) | {"num_examples": float(len(data))}
    if turned:
        quarters = np.stack([scores, *(predict(model, data.images, quarter_turns=turns) for turns in (1, 2, 3))])
        figures["rotation_consistency"] = rotation_consistency(quarters)
        figures["rotation_variation"] = rotation_total_variation(quarters)
    return figures, summary, table


def judge_images(model: nn.Module, data: ImageSet) -> dict[str, float]:
    """Return what candidates are compared by, in one pass: ``nll``, ``accuracy``, ``auroc`` and ``num_examples``.

    Of fewer than ``MIN_CELL`` images only their number is told, as by ``evaluate_images``.
    """
    counted = {"num_examples": float(len(data))}
    if len(data) < MIN_CELL:
        return counted
    figures = classification_metrics(predict(model, data.images), data.targets)
    return counted | {name: figures[name] for name in JUDGED}
