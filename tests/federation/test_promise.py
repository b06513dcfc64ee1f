"""Rounds of models that promise equivariance: what the card says, and what becomes of updates that break it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from field_net import FieldNet
from timm.models import register_model

from popmi_core.checkpoints import load_state
from popmi_core.errors import RunError
from popmi_core.groups import point_group

TWO = ["phantom_polarised", "phantom_ruler"]


@register_model
def popmi_dense_fields_for_tests(pretrained=False, num_classes=7, **_):
    return FieldNet(point_group("C4"), seed=0, widths=(2, 2), classes=num_classes).float()


def test_a_model_of_free_coefficients_keeps_its_promise_and_the_card_says_so(federation):
    plan = federation.plan(
        rounds=1,
        sites=TWO,
        model={"backbone": "popmi_vit_micro", "image_size": 32, "adapter": {"group": "C4", "merge_block": 0}},
    )

    federation.run(plan)

    model = Path(plan.folder) / "models" / "round-001.safetensors"
    found = json.loads(load_state(model)[1]["card"])["equivariance"]
    assert (found["group"], found["stored"], found["residue"], found["holds"]) == ("C4", "free coefficients", 0.0, True)
    assert "hold C4" in model.with_suffix(".md").read_text()
    with federation.read(plan) as reader:
        assert reader.rounds(reader.run().id)[0].notes["equivariance"]["holds"] is True


def test_dense_weights_trained_off_the_subspace_are_quarantined_before_they_are_averaged(federation):
    plan = federation.plan(
        rounds=1,
        sites=TWO,
        strategy="fedavg",
        model={"backbone": "popmi_dense_fields_for_tests", "image_size": 32, "adapter": {"group": "none"}},
    )

    with pytest.raises(RunError, match="is not C4-equivariant"):
        federation.run(plan)
