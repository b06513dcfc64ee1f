"""Rounds of a model with regular fields: it stays equivariant through training, averaging and the file."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from popmi_core.checkpoints import load_state
from popmi_core.cli.opened import open_model
from popmi_core.equivariance.certificate import certify_algebra
from popmi_core.groups import point_group
from popmi_core.models import build_model

MODEL = {"backbone": "popmi_vit_micro", "image_size": 32, "adapter": {"group": "D4", "fields": "regular"}}


def test_two_rounds_of_two_sites_end_in_a_model_that_is_proved(federation):
    plan = federation.plan(rounds=2, sites=["phantom_polarised", "phantom_ruler"], strategy="fedavg", model=MODEL)

    federation.run(plan)

    path = Path(plan.folder) / "models" / "round-002.safetensors"
    state, notes = load_state(path)
    said = json.loads(notes["card"])["equivariance"]
    assert (said["group"], said["stored"], said["residue"], said["holds"]) == ("D4", "free coefficients", 0.0, True)
    # Every layer of a ViT of two blocks, not only its kernel and positions.
    assert said["constrained"] == 30
    opened = open_model(path)
    found = certify_algebra(opened.model, 32, point_group("D4"))
    assert found.verdict == "proved", found.why
    start = build_model(plan.config.model, len(plan.classes), seed=plan.config.seed).state_dict()
    assert start.keys() == state.keys()
    # Every tensor was trained.
    assert all(not torch.equal(state[name], start[name]) for name in start)
