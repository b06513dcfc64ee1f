"""From stored images to class probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64, UInt8
from torch import nn

from popmi_core.models.inputs import normalise

EVALUATION_BATCH = 256


def predict(
    model: nn.Module, images: UInt8[npt.NDArray[np.uint8], "n height width 3"], *, quarter_turns: int = 0
) -> Float64[npt.NDArray[np.float64], "n classes"]:
    """Return class probabilities (softmax in float64) of images turned by ``quarter_turns`` times 90 degrees.

    The model is left in evaluation mode. The turn is exact: pixels move, none is interpolated.
    """
    model.eval()
    scores = []
    with torch.inference_mode():
        for start in range(0, max(len(images), 1), EVALUATION_BATCH):
            batch = normalise(torch.from_numpy(images[start : start + EVALUATION_BATCH]), model)
            scores.append(torch.softmax(model(torch.rot90(batch, quarter_turns, (2, 3))).double(), dim=1).numpy())
    return np.concatenate(scores)
