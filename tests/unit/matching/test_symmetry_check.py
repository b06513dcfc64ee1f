"""A description is put to the test on the model it describes."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching import describe, describe_model, verify_symmetry

FAMILIES = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "max"},
    {"init_values": 1e-5},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"reg_tokens": 2},
    {"no_embed_class": True},
    {"pre_norm": True},
    {"final_norm": False},
    {"scale_attn_norm": True},
    {"scale_mlp_norm": True},
    {"num_classes": 0},
    {"pos_embed": "none"},
]


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_every_vit_of_timm_gets_a_group_that_holds(small_vit, changes):
    model = small_vit(**changes)

    found = describe_model(model)

    assert found.heads or found.hidden
    assert verify_symmetry(model, found, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_what_names_alone_say_needs_no_correction(small_vit, changes):
    model = small_vit(**changes)

    by_name = describe(model.state_dict(), num_heads=2, pool=changes.get("global_pool", "token"))

    assert by_name == describe_model(model)


def test_the_model_is_left_as_it_was(small_vit):
    model = small_vit().float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    describe_model(model)

    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_post_norm_block_with_the_same_names_is_caught_and_cut_down(small_vit):
    model = small_vit(block_fn=ResPostBlock)

    assert not verify_symmetry(model, describe(model.state_dict(), num_heads=2))
    found = describe_model(model)

    assert found.stream == "fixed"
    assert found.folds == ()
    assert list(found.heads) == list(found.hidden) == [0, 1]


def test_the_wrong_number_of_heads_is_caught(small_vit):
    model = small_vit()

    assert not verify_symmetry(model, describe(model.state_dict(), num_heads=4))


def test_a_rotation_under_max_pooling_is_caught(small_vit):
    model = small_vit(global_pool="max")

    assert not verify_symmetry(model, describe(model.state_dict(), num_heads=2, pool="token"))


def test_a_layer_that_someone_reads_from_outside_is_left_out(small_vit):
    class Peeking(nn.Module):
        """Reads one MLP's hidden units in their order: only these may not be shuffled."""

        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
            # No parameter: copies of the model share the hook and so the constant.
            weights = torch.randn(128, dtype=torch.float64)
            backbone.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: out * weights)

        def forward(self, images):
            return self.backbone(images)

    model = Peeking(small_vit())

    found = describe_model(model)

    assert list(found.hidden) == [0]
    assert list(found.heads) == [0, 1]
    assert any("blocks.1.mlp fixed" in note for note in found.notes)


def test_nothing_is_known_about_a_convolutional_net():
    assert describe_model(timm.create_model("resnet10t", num_classes=3)) is None


def test_blocks_with_different_heads_are_not_known(small_vit):
    model = small_vit()
    model.blocks[1].attn.num_heads = 4

    assert describe_model(model) is None


def test_a_model_whose_outputs_do_not_stand_any_move_is_not_known(small_vit):
    class Scrambled(nn.Module):
        """Looks like a ViT but reads the raw weights of every layer."""

        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, images):
            sums = [p.flatten()[0] + 2 * p.flatten()[-1] for p in self.backbone.parameters()]
            return self.backbone(images) + torch.stack(sums).sum()

    assert describe_model(Scrambled(small_vit())) is None


def test_a_model_without_image_size_cannot_be_tested(small_vit):
    model = small_vit()
    symmetry = describe(model.state_dict(), num_heads=2)
    model.patch_embed.img_size = None

    with pytest.raises(ModelError, match=r"VisionTransformer has no patch embedding with an img_size"):
        verify_symmetry(model, symmetry)
    assert describe_model(model) is None


def test_dropping_layers_says_so(small_vit):
    found = describe(small_vit().state_dict(), num_heads=2)

    smaller = found.without_layers(heads=[1], hidden=[0], reason="tested")

    assert smaller.notes == ("blocks.1.heads fixed: tested", "blocks.0.mlp fixed: tested")
    assert replace(smaller, notes=()) == replace(
        found, heads={0: found.heads[0]}, hidden={1: found.hidden[1]}, notes=()
    )
