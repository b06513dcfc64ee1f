"""What is read from names and shapes, and what is left out where it is not sure."""

import pytest
import timm
import torch

from popmi_core.errors import ModelError
from popmi_core.matching import describe


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_stock_vit_has_a_rotation_and_every_head_and_hidden_layer(small_vit):
    found = describe(small_vit().state_dict(), num_heads=2)

    assert found.stream == "orthogonal"
    assert (found.dim, found.head_dim, found.depth) == (32, 16, 2)
    assert list(found.heads) == list(found.hidden) == [0, 1]
    assert found.notes == ()


def test_shapes_are_enough(small_vit):
    model = small_vit()

    assert describe(shapes_of(model), num_heads=2) == describe(model.state_dict(), num_heads=2)


def test_every_tensor_of_a_stock_vit_is_accounted_for(small_vit):
    model = small_vit(init_values=0.1)
    found = describe(model.state_dict(), num_heads=2)

    left = set(model.state_dict()) - found.names()

    # Biases of layers that need not have one, and of norms; everything else must be named.
    assert left == {name for name in left if name.endswith(".bias")}


def test_a_common_prefix_is_found(small_vit):
    wrapped = {f"backbone.{name}": shape for name, shape in shapes_of(small_vit()).items()}

    assert describe(wrapped, num_heads=2).prefix == "backbone."


def test_an_adapter_fixes_the_stream_but_not_heads_and_hidden_units(small_vit):
    wrapped = {f"backbone.{name}": shape for name, shape in shapes_of(small_vit()).items()}
    wrapped["prea.down.weight"] = (8, 32)

    found = describe(wrapped, num_heads=2)

    assert found.stream == "fixed"
    assert list(found.heads) == list(found.hidden) == [0, 1]
    assert "prea.down.weight" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_norm": True}, "norm_pre"),
        ({"qkv_bias": False}, "without bias"),
        ({"num_classes": 0}, "no head"),
        ({"proj_bias": False}, "unknown part"),
        ({"scale_attn_norm": True}, "attn.norm"),
    ],
)
def test_what_a_rotation_would_break_fixes_the_stream(small_vit, changes, reason):
    found = describe(small_vit(**changes).state_dict(), num_heads=2)

    assert found.stream == "fixed"
    assert reason in found.notes[0]


def test_max_pooling_fixes_the_stream(small_vit):
    assert describe(small_vit().state_dict(), num_heads=2, pool="max").stream == "fixed"
    assert describe(small_vit().state_dict(), num_heads=2, pool="avg").stream == "orthogonal"


def test_an_attention_with_unknown_tensors_keeps_its_heads(small_vit):
    shapes = shapes_of(small_vit())
    shapes["blocks.1.attn.gate.weight"] = (32, 32)

    assert list(describe(shapes, num_heads=2).heads) == [0]


def test_a_gated_mlp_keeps_its_hidden_units(small_vit):
    shapes = shapes_of(small_vit())
    # Two halves, one of them the gate: rows of fc1 and columns of fc2 no longer pair up.
    shapes["blocks.0.mlp.fc1.weight"] = (256, 32)

    assert list(describe(shapes, num_heads=2).hidden) == [1]


def test_under_qk_norm_queries_and_keys_keep_their_basis(small_vit):
    found = describe(small_vit(qk_norm=True).state_dict(), num_heads=2)

    assert {slots.query_key for slots in found.heads.values()} == {"fixed"}


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_other_architectures_are_not_known_or_cut_down(name):
    with torch.device("meta"):
        model = timm.create_model(name)

    found = describe({key: tuple(t.shape) for key, t in model.state_dict().items()}, num_heads=12)

    assert found is None or (found.stream == "fixed" and not found.heads)


def test_a_block_without_its_parts_is_not_known(small_vit):
    shapes = shapes_of(small_vit())
    del shapes["blocks.1.norm2.weight"]

    assert describe(shapes, num_heads=2) is None


def test_an_adapter_only_update_has_nothing_to_match():
    assert describe({"prea.up.weight": (32, 8), "head.weight": (7, 32)}, num_heads=2) is None


def test_heads_that_do_not_divide_the_channels_are_refused(small_vit):
    with pytest.raises(ModelError, match=r"describe: 32 channels do not divide into 5 heads.*Pass the model's own"):
        describe(small_vit().state_dict(), num_heads=5)


def test_the_heads_only_part_folds_no_other_norm(small_vit):
    small = describe(small_vit().state_dict(), num_heads=2).heads_only()

    assert {fold.norm for fold in small.folds} == {"blocks.0.norm1", "blocks.1.norm1"}
    assert small.stream == "fixed"
    assert small.hidden == {}
