"""A softened model's table of places moves with the features it is added to."""

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach
from popmi_core.adapters.soft import soften
from popmi_core.errors import ModelError
from popmi_core.matching import describe_model, verify_symmetry


def test_a_softened_vit_is_described_and_moves_change_nothing():
    torch.manual_seed(0)
    model = attach(timm.create_model("popmi_vit_micro", num_classes=3).eval(), group="C4", merge_block=1)
    soft = soften(model, free_blocks=1, image_size=32)
    with torch.no_grad():
        soft.backbone.blocks[1].free_positions.add_(torch.randn(1, 16, 32))
    symmetry = describe_model(soft)
    assert any(axis.tensor == "backbone.blocks.1.free_positions" for axis in symmetry.axes)
    assert verify_symmetry(soft, symmetry)


def test_freed_kernels_are_refused_with_what_to_do():
    torch.manual_seed(0)
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 8, 8)).eval()
    model = attach(backbone, group="C4", merge_block=2)
    with pytest.raises(ModelError, match=r"is not described .*or take a rule that needs no description"):
        describe_model(soften(model, free_blocks=1, image_size=33))
