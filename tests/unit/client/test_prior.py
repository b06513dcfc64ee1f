"""A site's own class mix: Bayes' rule at the site, and nothing small in what is told."""

import numpy as np
import pytest
import torch
from torch import nn

from client.prior import OwnPrior, class_counts, prior_shift
from popmi_core.data import ImageSet
from popmi_core.errors import UpdateError


def test_answers_are_those_of_bayes_rule_for_the_site() -> None:
    # Two kinds of image, x = 0 and x = 1, with known p(x | class); the mix differs between all sites and this one.
    likelihood = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    together, own = np.array([600, 300, 100]), np.array([10, 80, 10])
    joint = likelihood * (together / together.sum())[:, None]
    # The model that all sites would train: the posterior under their common mix.
    model = nn.Linear(2, 3, bias=False)
    model.weight.data = torch.tensor(np.log(joint), dtype=torch.float32)

    # Laplace's added image is undone by counts that are one lower.
    shift = prior_shift(list(own - 1), list(together - 1))
    found = OwnPrior(model, shift)(torch.eye(2)).softmax(1)

    wanted = likelihood * (own / own.sum())[:, None]
    # Weights are float32.
    np.testing.assert_allclose(found.detach().numpy().T, wanted / wanted.sum(0), rtol=1e-6)


def test_the_common_mix_changes_nothing() -> None:
    assert prior_shift([30, 20, 0], [30, 20, 0]) == (0.0, 0.0, 0.0)


def test_a_class_the_site_lacks_stays_possible() -> None:
    shift = prior_shift([100, 0], [100, 100])

    assert np.isfinite(shift).all()
    assert shift[1] < -3


def test_small_cells_are_told_as_none() -> None:
    targets = np.array([0] * 7 + [1] * 4 + [3] * 5)
    data = ImageSet(np.zeros((16, 2, 2, 3), dtype=np.uint8), targets)

    assert class_counts(data, 5) == (7, 0, 0, 5, 0)


def test_counts_of_other_classes_are_refused() -> None:
    with pytest.raises(UpdateError, match="images of 2 classes, expected 3"):
        prior_shift([1, 2, 3], [4, 5])
