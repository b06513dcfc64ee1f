"""What a site tells about a model: figures of groups, never of one patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from client.evaluate import evaluate_images
from popmi_core.data import ImageSet
from popmi_core.metrics import classification_metrics
from popmi_core.metrics.discrimination import confusion
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.models import predict


class Brightest(nn.Module):
    """Logits are the mean of the three colour channels: the same however an image is turned."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 4 * images.mean(dim=(2, 3))


class Corner(nn.Module):
    """Logits look at one corner only: an image turned is another image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 9 * images[:, :, 0, 0]


def images(count: int) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, count))


def test_the_figures_are_those_of_the_images():
    data = images(60)
    figures, summary, _ = evaluate_images(Brightest(), data)
    for name, value in classification_metrics(predict(Brightest(), data.images), data.targets).items():
        assert figures[name] == value
    assert figures["num_examples"] == summary.num_examples == 60


def test_a_model_that_ignores_turns_is_consistent_and_one_that_does_not_is_not():
    data = images(60)
    steady, turned = evaluate_images(Brightest(), data)[0], evaluate_images(Corner(), data)[0]
    assert steady["rotation_consistency"] == 1
    assert turned["rotation_consistency"] < 0.5
    # Sums of turned images differ in rounding only.
    assert steady["rotation_variation"] < 1e-6 < turned["rotation_variation"]


def test_without_turns_one_pass_tells_all_other_figures():
    turned, plain = (evaluate_images(Corner(), images(60), turned=turns)[0] for turns in (True, False))
    assert plain == {name: value for name, value in turned.items() if not name.startswith("rotation")}


@pytest.mark.parametrize("count", [1, MIN_CELL - 1])
def test_of_a_handful_of_images_only_their_number_is_told(count):
    figures, summary, table = evaluate_images(Brightest(), images(count))
    assert figures == {"num_examples": count}
    assert not summary.told.any()
    assert {cell for row in table for cell in row} == {None}


def test_cells_of_the_confusion_table_that_are_told_are_those_of_the_images():
    data = images(400)
    counts = confusion(predict(Brightest(), data.images).argmax(axis=1), data.targets, 3)
    table = evaluate_images(Brightest(), data)[2]
    told = [(int(counts[r, c]), table[r][c]) for r in range(3) for c in range(3) if table[r][c] is not None]
    assert told
    assert all(known == cell >= MIN_CELL for known, cell in told)


def test_the_summary_holds_no_score_of_a_patient():
    data = images(40)
    scores = predict(Brightest(), data.images)
    arrays = evaluate_images(Brightest(), data)[1].to_arrays()
    assert all(array.dtype == np.int64 for array in arrays.values())
    assert sum(array.size for array in arrays.values()) > 0
    assert not any(np.isin(scores.ravel(), array).any() for array in arrays.values())
