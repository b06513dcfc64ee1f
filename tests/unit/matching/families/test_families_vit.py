"""Every ViT that timm builds from its own blocks gets a group that holds to rounding, and a wrong one is caught."""

from functools import partial

import pytest
import torch
from timm.layers import ConvMlp, GluMlp, SwiGLU, SwiGLUPacked
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching.check import describe_model, verify_symmetry
from popmi_core.matching.families import describe

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "num_classes": 5}
ROTATED = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "avg_without_fc_norm": {"global_pool": "avg", "fc_norm": False},
    "avg_without_class_token": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map"},
    "map_fc_norm": {"global_pool": "map", "fc_norm": True},
    "map_without_head": {"global_pool": "map", "num_classes": 0},
    "layer_scale": {"init_values": 1e-5},
    "qk_norm": {"qk_norm": True},
    "no_qkv_bias": {"qkv_bias": False},
    "no_proj_bias": {"proj_bias": False},
    "registers": {"reg_tokens": 2},
    "no_embed_class": {"no_embed_class": True},
    "no_positions": {"pos_embed": "none"},
    "no_final_norm": {"final_norm": False},
    "scale_attn_norm": {"scale_attn_norm": True},
    "scale_mlp_norm": {"scale_mlp_norm": True},
    "glu": {"mlp_layer": GluMlp},
    "swiglu": {"mlp_layer": SwiGLU},
    "swiglu_packed": {"mlp_layer": SwiGLUPacked},
    "relu": {"act_layer": "relu"},
    "rms_norm": {"norm_layer": "rmsnorm"},
    "parallel_things": {"block_fn": ParallelThingsBlock, "init_values": 0.1},
    "parallel_scaling": {"block_fn": ParallelScalingBlock, "qk_norm": True},
    "parallel_scaling_no_bias": {"block_fn": ParallelScalingBlock, "qkv_bias": False},
    "parallel_scaling_fused": {"block_fn": partial(ParallelScalingBlock, fuse_out_proj=True), "init_values": 0.1},
}
PERMUTED = {
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "pre_norm": {"pre_norm": True},
    "embed_norm": {"embed_norm_layer": "layernorm"},
    "post_norm": {"block_fn": ResPostBlock},
    "parallel_scaling_layer_scale": {"block_fn": ParallelScalingBlock, "init_values": 0.1},
}
OTHERS = {"prr": {"global_pool": "prr"}, "no_head": {"num_classes": 0}}
VARIANTS = ROTATED | PERMUTED | OTHERS
# Rounding of two float64 passes through different but equal matrices; a wrong group is off by about one.
ROUNDING = 1e-10


def make(cls=VisionTransformer, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**(SMALL | changes)).eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gets_a_group_that_keeps_the_function(name, respelled):
    model = make(**VARIANTS[name])

    found = describe_model(model)

    assert respelled(model, found) < ROUNDING


@pytest.mark.parametrize("name", VARIANTS)
def test_every_space_shows_in_some_activation(name, tap_errors):
    model = make(**VARIANTS[name])
    found = describe(model)

    errors = tap_errors(model, found)

    assert set(errors) == set(found.spaces)
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("name", VARIANTS)
def test_the_stream_has_the_largest_group_that_is_exact(name):
    found = describe(make(**VARIANTS[name]))

    kind = "orthogonal" if name in ROTATED else "permutation"
    expected = {"prr": "grouped", "no_head": None}.get(name, kind)

    assert (found.spaces["stream"].kind if "stream" in found.spaces else None) == expected


@pytest.mark.parametrize("name", ["swiglu", "no_qkv_bias", "parallel_scaling_fused", "map", "pre_norm"])
def test_leaving_out_any_axis_is_noticed(name, idle_axes):
    model = make(**(VARIANTS[name] | {"depth": 1}))

    idle = idle_axes(model, describe(model))

    # Biases of keys and values are folded to zero; a vector of zeros may be moved or not.
    assert all(axis.tensor.endswith((".qkv.bias", ".kv.bias", "in_proj.bias")) for axis in idle)
    assert not any(axis.part == "query_key" and not axis.dual for axis in idle)


def test_distilled_deit_reads_its_stream_with_two_heads(respelled, tap_errors):
    model = make(VisionTransformerDistilled)

    found = describe_model(model)

    assert {"head.weight", "head_dist.weight", "dist_token"} <= {axis.tensor for axis in found.of("stream")}
    assert respelled(model, found) < ROUNDING
    assert max(tap_errors(model, found).values()) < ROUNDING


def test_a_gate_on_the_values_keeps_their_basis(respelled):
    model = make()
    model.blocks[1].attn = Attention(16, num_heads=4, qkv_bias=True, gated=True)

    found = describe_model(model)

    assert found.spaces["blocks.0.heads"].maps["value"] == "linear"
    assert found.spaces["blocks.1.heads"].maps["value"] == "fixed"
    assert respelled(model, found) < ROUNDING


@pytest.mark.parametrize("small", [1e-4, 0.02])
@pytest.mark.parametrize("name", ["token", "no_qkv_bias", "swiglu"])
def test_channels_that_a_norm_all_but_closes_do_not_break_the_function(name, small, respelled):
    model = make(**VARIANTS[name])

    assert respelled(model, describe(model), small) < ROUNDING


def test_relu_units_may_also_be_scaled():
    assert describe(make(act_layer="relu")).spaces["blocks.0.mlp"].rescalable
    assert not describe(make()).spaces["blocks.0.mlp"].rescalable


def test_a_rotation_under_max_pooling_is_caught():
    claimed = describe(make(global_pool="avg"))

    assert not verify_symmetry(make(global_pool="max"), claimed)


def test_a_model_that_peeks_at_hidden_units_is_refused():
    model = make()
    weights = torch.randn(64, dtype=torch.float64)
    model.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: out * weights)

    with pytest.raises(ModelError, match=r"a random move of blocks\.1\.mlp changed the outputs"):
        describe_model(model)


class Other(Block):
    """A block that says nothing about itself."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_fn": Other}, r"module 'blocks\.0' is a Other, expected a block of timm"),
        ({"block_fn": DiffParallelScalingBlock}, r"module 'blocks\.0' is a DiffParallelScalingBlock"),
        ({"attn_layer": "diff"}, r"module 'blocks\.0\.attn' is a DiffAttention, expected timm's Attention"),
        ({"mlp_layer": ConvMlp}, r"module 'blocks\.0\.mlp' is a ConvMlp, expected an MLP of timm"),
    ],
    ids=["block", "diff_block", "attention", "mlp"],
)
def test_a_part_that_is_not_known_is_named(changes, message):
    with pytest.raises(ModelError, match=message):
        describe(make(**changes))


def test_an_unknown_pool_is_named():
    model = make(global_pool="map")
    model.attn_pool = nn.Linear(16, 16)

    with pytest.raises(ModelError, match=r"module 'attn_pool' is a Linear, expected AttentionPoolLatent"):
        describe(model)


def test_a_module_that_someone_added_is_named():
    model = make()
    model.blocks[0].extra = nn.Linear(2, 2)

    with pytest.raises(ModelError, match=r"module 'blocks\.0\.extra' is not described"):
        describe(model)
