"""Weights that are finite, but so large that nothing can be compared with them: who and where is told."""

from __future__ import annotations

import pytest

from popmi_core.errors import UpdateError
from popmi_core.matching import Matcher, describe_model

FC1, QKV = "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight"


@pytest.fixture
def single(small_vit, monkeypatch):
    """A pair of models that are compared in float32, as those above 20 million numbers are."""
    monkeypatch.setattr("popmi_core.matching.opm._LARGE", 0)
    first, second = (dict(small_vit(seed).float().state_dict()) for seed in (0, 1))
    return first, second, describe_model(small_vit())


@pytest.mark.parametrize(("name", "space"), [(FC1, "blocks.0.mlp"), (QKV, "blocks.0.heads")])
def test_scores_that_overflow_name_the_site_and_the_space(single, name, space):
    first, second, symmetry = single
    # Along the reference, so that sums overflow rather than cancel; folded gammas leave it finite.
    second[name] = first[name].sign() * 2e38

    with pytest.raises(UpdateError, match=rf"site north: its weights around '{space}' are finite but overflow when"):
        Matcher(first, symmetry).match(second, site="north")


def test_weights_that_overflow_with_their_norm_name_the_tensor(single):
    first, second, symmetry = single
    huge = second | {QKV: second[QKV] * 1e20, "blocks.0.norm1.weight": second["blocks.0.norm1.weight"] * 1e20}

    with pytest.raises(UpdateError, match=f"site north, with norms folded in: '{QKV}' holds NaN or infinity"):
        Matcher(first, symmetry).match(huge, site="north")
    with pytest.raises(UpdateError, match=f"the reference, with norms folded in: '{QKV}' holds NaN or infinity"):
        Matcher(huge, symmetry)


def test_a_head_that_has_no_basis_is_no_crash(small_vit):
    first, second = (dict(small_vit(seed).state_dict()) for seed in (0, 1))
    second[QKV] = second[QKV] * 1e170

    with pytest.raises(UpdateError, match=r"site north: its weights are finite but overflow \(linalg\.cholesky"):
        Matcher(first, describe_model(small_vit())).match(second, site="north")
