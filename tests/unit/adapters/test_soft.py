"""Soft equivariance: nothing changes at first, orientation can be learned, and a copy is a copy."""

import copy

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach, detach, equivariance_error
from popmi_core.adapters.prea import add_low_rank
from popmi_core.adapters.soft import FreedConv2d, free_blocks_in, soften, softness
from popmi_core.adapters.tied import TiedConv2d
from popmi_core.errors import ModelError
from popmi_core.groups import point_group


def vit(merge_block: int = 1, **options):
    torch.manual_seed(0)
    backbone = timm.create_model("popmi_vit_micro", num_classes=3).eval()
    return attach(backbone, group="C4", merge_block=merge_block, adapters="none", **options)


def resnet(merge_block: int = 2, **options):
    torch.manual_seed(0)
    # Odd sizes all the way, 33 to 3: strides of two keep the group. Residual branches that start at nothing hide it.
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 16, 16, 32), zero_init_last=False)
    return attach(backbone.eval(), group="C4", merge_block=merge_block, adapters="none", **options)


CASES = [(vit, 32, 1), (resnet, 33, 2)]


def pictures(side: int) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("make", "side", "free"), CASES)
def test_a_softened_model_starts_as_the_exact_one_and_leaves_it_alone(make, side, free):
    model = make()
    names = set(model.state_dict())
    soft = soften(model, free_blocks=free, image_size=side)
    assert torch.equal(soft(pictures(side)), model(pictures(side)))
    # The float32 residue of exact models.
    assert equivariance_error(soft, pictures(side), point_group("C4")) < 1e-4
    assert set(model.state_dict()) == names
    added = set(soft.state_dict()) - names
    assert added
    assert set(softness(soft.state_dict())) == added
    assert set(softness(soft.state_dict()).values()) == {0.0}


@pytest.mark.parametrize(("make", "side", "free"), CASES)
def test_what_was_added_gets_a_gradient_and_then_orientation_is_seen(make, side, free):
    soft = soften(make(), free_blocks=free, image_size=side)
    soft(pictures(side))[0].sum().backward()
    freed = [p for name, p in soft.named_parameters() if "free_" in name]
    assert freed
    assert all(p.grad.abs().max() > 0 for p in freed)
    with torch.no_grad():
        for p in freed:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    assert equivariance_error(soft, pictures(side), point_group("C4")) > 1e-2
    assert min(softness(soft.state_dict()).values()) > 0.3


@pytest.mark.parametrize(("make", "side", "free"), CASES)
def test_a_copy_reads_its_own_weights_and_names_tell_how_much_is_free(make, side, free):
    soft = soften(make(), free_blocks=free, image_size=side)
    other = copy.deepcopy(soft)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if "free_" in name:
                p.add_(1.0)
    assert not torch.equal(other(pictures(side)), soft(pictures(side)))
    assert free_blocks_in(soft.state_dict(), soft.backbone) == free
    assert free_blocks_in(make().state_dict(), soft.backbone) == 0


def test_a_freed_kernel_is_the_tied_one_plus_its_own_and_is_written_out_dense():
    torch.manual_seed(0)
    tied = TiedConv2d(torch.nn.Conv2d(2, 4, 3), point_group("D4"))
    freed = FreedConv2d(tied, point_group("D4"))
    assert torch.equal(freed.kernel(), tied.kernel())
    with torch.no_grad():
        freed.free_kernel.copy_(torch.randn(4, 2, 3, 3))
    assert torch.equal(freed.dense().weight, tied.kernel() + freed.free_kernel)
    model = soften(resnet(0), free_blocks=1, image_size=33)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "free_kernel" in name).add_(0.1)
    # Two ways through the same arithmetic in float32.
    assert (detach(model).eval()(pictures(33)) - model(pictures(33))).abs().max() < 1e-4


def test_with_adapters_only_the_freed_part_is_trained_too():
    soft = soften(vit(train="adapter"), free_blocks=1, image_size=32)
    assert {name for name, p in soft.named_parameters() if p.requires_grad} == {
        "backbone.head.weight",
        "backbone.head.bias",
        "backbone.blocks.1.free_positions",
    }


def test_low_rank_adapters_leave_the_freed_part_to_be_trained():
    soft = soften(vit(train="adapter"), free_blocks=1, image_size=32)
    model = add_low_rank(soft, rank=2, train="adapter")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "backbone.blocks.1.free_positions" in trained
    assert not any(name.endswith(("norm1.weight", "fc1.weight", "qkv.weight")) for name in trained)


def test_freed_kernels_of_a_frozen_network_train_and_what_they_are_added_to_does_not():
    soft = soften(resnet(0, train="adapter"), free_blocks=1, image_size=33)
    trained = {name for name, p in soft.named_parameters() if p.requires_grad}
    freed = {name for name, _ in soft.named_parameters() if name.endswith("free_kernel")}
    assert freed
    assert trained == freed | {"backbone.fc.weight", "backbone.fc.bias"}


def test_blocks_that_are_not_there_or_lie_before_the_merge_are_refused():
    with pytest.raises(ModelError, match="VisionTransformer has 1 known blocks after the merge at block 1"):
        soften(vit(), free_blocks=2, image_size=32)
    with pytest.raises(ModelError, match="VisionTransformer has no known block after the merge at block 2"):
        soften(vit(2), free_blocks=1, image_size=32)
