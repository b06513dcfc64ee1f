"""Validation figures of a model while it trains, and which of two epochs is the better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn

from popmi_core.data import ImageSet
from popmi_core.errors import DataError, RunError
from popmi_core.metrics import classification_metrics

Judge = Callable[[nn.Module], Mapping[str, float]]
Normalise = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n channels height width"]]

_BATCH = 256


def predicted(model: nn.Module, data: ImageSet, normalise: Normalise) -> Float64[npt.NDArray[np.float64], "n classes"]:
    """Return class probabilities (softmax in float64); the model's mode is left alone, it runs where it lies."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    scores = []
    with torch.inference_mode():
        for start in range(0, max(len(data), 1), _BATCH):
            images = torch.from_numpy(data.images[start : start + _BATCH]).to(device)
            scores.append(torch.softmax(model(normalise(images)).double(), dim=1).cpu().numpy())
    return np.concatenate(scores)


def judge_on(data: ImageSet, normalise: Normalise, *, needed: str) -> Judge:
    """Return what scores a model on ``data`` (``classification_metrics``); without images it scores nothing.

    Raises:
        DataError: If epochs are to be chosen by ``needed`` and the data cannot give that figure.
    """
    remedy = "Give more validation images, or keep the last epoch (choose = 'last')."
    if needed != "last" and len(data) == 0:
        raise DataError(f"there is no validation image to choose an epoch by {needed}. {remedy}")
    if needed == "auroc" and len(np.unique(data.targets)) < 2:
        raise DataError(f"the validation images are of one class, of which no AUROC is defined. {remedy}")

    def judge(model: nn.Module) -> dict[str, float]:
        if not len(data):
            return {}
        scores = predicted(model, data, normalise)
        if not np.isfinite(scores).all():
            raise RunError(
                "the answers to validation images are NaN or infinite, expected finite numbers: training has diverged. "
                "Lower the learning rate, raise the warm-up, or set max_grad_norm."
            )
        return classification_metrics(scores, data.targets)

    return judge


def better(figures: Mapping[str, float], than: Mapping[str, float], choose: str) -> bool:
    """Return whether ``figures`` are better: higher in ``choose`` (lower where it is ``nll``), ties by ``nll``."""
    if choose == "last":
        return True
    return _rank(figures, choose) > _rank(than, choose)


def _rank(figures: Mapping[str, float], choose: str) -> tuple[float, float]:
    loss = figures.get("nll", 0.0)
    first = -loss if choose == "nll" else figures[choose]
    return (-math.inf if math.isnan(first) else first, -loss)
