"""The ensemble averages answers and leaves the model as it was."""

import numpy as np
import pytest
import timm
import torch

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.fusion import fuse
from popmi_core.fusion.ensemble import ensemble, mean_probabilities
from popmi_core.models import predict


def test_answers_are_averaged_by_weight():
    first, second = np.array([[0.2, 0.8]]), np.array([[0.6, 0.4]])

    np.testing.assert_allclose(mean_probabilities([(3, first), (1, second)]), [[0.3, 0.7]], rtol=1e-15)


def test_the_ensemble_is_the_mean_of_each_models_probabilities():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: tensor + 0.1 for name, tensor in own.items()}
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    expected = predict(model, images)
    model.load_state_dict(other)
    expected = (expected + predict(model, images)) / 2
    model.load_state_dict(own)

    found = ensemble(model, [(1, own), (1, other)], images)

    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


def test_answers_about_other_classes_are_refused():
    with pytest.raises(UpdateError, match=r"ensemble: model 1 answers with shape \(1, 3\), expected \(1, 2\)"):
        mean_probabilities([(1, np.ones((1, 2))), (1, np.ones((1, 3)))])


def test_a_negative_weight_is_refused():
    with pytest.raises(UpdateError, match="ensemble: model 0 has weight -1, expected at least 0"):
        mean_probabilities([(-1, np.ones((1, 2)))])


@pytest.mark.parametrize("answers", [[], [(0, np.ones((1, 2)))]])
def test_no_weight_is_refused(answers):
    with pytest.raises(UpdateError, match="ensemble: no model has a weight above 0"):
        mean_probabilities(answers)


def test_the_ensemble_is_no_fusion_rule(reference, make_updates):
    with pytest.raises(ConfigError, match="'ensemble' is a reference for comparison that gives answers, not a model"):
        fuse("ensemble", make_updates(2), reference=reference)
