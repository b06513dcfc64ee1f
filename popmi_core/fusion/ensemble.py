"""The ensemble: average what the models answer, not what they are. A reference that costs one inference per model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, UInt8
from torch import nn

from popmi_core.errors import UpdateError
from popmi_core.fusion.update import State
from popmi_core.models import predict

Answer = Float64[npt.NDArray[np.float64], "n classes"]


def mean_probabilities(answers: Iterable[tuple[float, Answer]]) -> Answer:
    """Return the weighted mean of the models' class probabilities; one answer is in memory at a time.

    Args:
        answers: Each model's weight (at least 0; they are divided by their sum) and softmax probabilities.

    Raises:
        UpdateError: If there is no answer, shapes differ, a weight is negative or all are 0.
    """
    total, mass = np.zeros(()), 0.0
    for index, (weight, answer) in enumerate(answers):
        if index and answer.shape != total.shape:
            raise UpdateError(
                f"ensemble: model {index} answers with shape {answer.shape}, expected {total.shape}. "
                "Ask every model about the same images and classes."
            )
        if weight < 0:
            raise UpdateError(f"ensemble: model {index} has weight {weight:g}, expected at least 0. Correct the call.")
        total, mass = total + weight * answer, mass + weight
    if mass == 0:
        raise UpdateError("ensemble: no model has a weight above 0, expected at least one. Give it a trained model.")
    return np.asarray(total / mass, dtype=np.float64)


def ensemble(
    model: nn.Module,
    states: Iterable[tuple[float, State]],
    images: UInt8[npt.NDArray[np.uint8], "n height width 3"],
    *,
    quarter_turns: int = 0,
) -> Answer:
    """Return the mean class probabilities of several models of one architecture, each with its weight.

    The states pass through ``model`` one after another; it leaves with the weights it came with.

    Raises:
        UpdateError: If there is no state, a weight is negative or all are 0.
    """
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def answers() -> Iterable[tuple[float, Answer]]:
        for weight, state in states:
            model.load_state_dict(dict(state), strict=True)
            yield weight, predict(model, images, quarter_turns=quarter_turns)

    try:
        return mean_probabilities(answers())
    finally:
        model.load_state_dict(own, strict=True)
