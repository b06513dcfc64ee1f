"""From stored images to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from popmi_core.models import normalise, predict
from popmi_core.models.predict import EVALUATION_BATCH


class Corner(nn.Module):
    """Logits are the pixel in the upper left corner; dropout shows whether the model evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(images[:, :, 0, 0])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)


def test_scores_are_probabilities_and_the_model_is_left_evaluating():
    model = Corner().train()
    scores = predict(model, images(5))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)  # softmax in float64
    assert not model.training


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turning_the_model_s_view_is_turning_the_pixels(turns):
    pictures = images(4)
    turned = np.ascontiguousarray(np.rot90(pictures, turns, (1, 2)))
    assert (predict(Corner(), pictures, quarter_turns=turns) == predict(Corner(), turned)).all()


def test_many_images_go_in_parts_and_keep_their_order():
    pictures = images(EVALUATION_BATCH + 3)
    whole = predict(Corner(), pictures)
    assert len(whole) == len(pictures)
    assert (whole[-2:] == predict(Corner(), pictures[-2:])).all()


def test_probabilities_are_the_softmax_of_the_normalised_image():
    picture = images(1)
    model = Corner().eval()
    expected = torch.softmax(model(normalise(torch.from_numpy(picture), model)).double(), 1)
    assert torch.equal(torch.from_numpy(predict(model, picture)), expected)


def test_no_image_gives_no_score():
    assert predict(Corner(), images(0)).shape[0] == 0
