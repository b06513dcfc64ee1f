"""Swin V1 rotates its later stages, Swin V2 permutes them all; both hold to rounding, padded windows included."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching.check import describe_model, verify_symmetry
from popmi_core.matching.families import describe
from popmi_core.matching.steps import NormFold

SMALL = {
    "img_size": 16,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 8,
    "depths": (1, 2),
    "num_heads": (4, 4),
    "num_classes": 5,
}
VARIANTS = {
    "plain": {},
    "three_stages": {"depths": (1, 1, 1), "num_heads": (4, 4, 8), "img_size": 18},
    "no_qkv_bias": {"qkv_bias": False},
    "padded_windows": {"window_size": 3, "img_size": 20},
    "any_size": {"strict_img_size": False},
    "max": {"global_pool": "max"},
    "no_pool": {"global_pool": ""},
    "no_head": {"num_classes": 0},
}
CASES = [(cls, name) for cls in (SwinTransformer, SwinTransformerV2) for name in VARIANTS]
# Rounding of two float64 passes through different but equal matrices; a wrong group is off by about one.
ROUNDING = 1e-10


def make(cls=SwinTransformer, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**(SMALL | changes)).eval()


@pytest.mark.parametrize(("cls", "name"), CASES)
def test_every_variant_gets_a_group_that_keeps_the_function(cls, name, respelled):
    model = make(cls, **VARIANTS[name])

    found = describe_model(model)

    assert respelled(model, found) < ROUNDING


@pytest.mark.parametrize(("cls", "name"), [case for case in CASES if case[1] in ("plain", "padded_windows", "no_head")])
def test_every_space_shows_in_some_activation(cls, name, tap_errors):
    model = make(cls, **VARIANTS[name])
    found = describe(model)

    errors = tap_errors(model, found)

    assert set(errors) == set(found.spaces)
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("cls", [SwinTransformer, SwinTransformerV2])
def test_leaving_out_any_axis_is_noticed(cls, idle_axes):
    model = make(cls, depths=(1, 1))

    idle = idle_axes(model, describe(model))

    # Biases of keys and values are folded to zero; a vector of zeros may be moved or not.
    assert all(axis.tensor.endswith((".qkv.bias", ".v_bias")) for axis in idle)
    assert not any(axis.part == "query_key" and not axis.dual for axis in idle)


def test_each_stage_has_the_largest_group_that_is_exact():
    stages = ("layers.0.stream", "layers.1.stream")

    assert [describe(make()).spaces[name].kind for name in stages] == ["permutation", "orthogonal"]
    assert [describe(make(global_pool="max")).spaces[name].kind for name in stages] == ["permutation"] * 2
    assert [describe(make(SwinTransformerV2)).spaces[name].kind for name in stages] == ["permutation"] * 2


def test_a_first_stage_without_a_norm_before_it_rotates(respelled):
    model = make()
    model.patch_embed.norm = nn.Identity()

    found = describe_model(model)

    assert found.spaces["layers.0.stream"].kind == "orthogonal"
    assert respelled(model, found) < ROUNDING


def test_merging_reads_four_neighbours_and_keeps_beta_where_its_stage_rotates():
    found = describe(make(depths=(1, 1, 1), num_heads=(4, 4, 8)))

    merging = "layers.2.downsample"
    reads = [axis for axis in found.of("layers.1.stream") if axis.tensor.startswith(merging)]
    kept = [step for step in found.steps if isinstance(step, NormFold) and step.norm == f"{merging}.norm"]

    assert {(axis.tensor, axis.repeat) for axis in reads} == {
        (f"{merging}.reduction.weight", 4),
        (f"{merging}.norm.bias", 4),
    }
    assert [step.keep_beta for step in kept] == [True]


def test_beta_is_not_folded_where_padding_adds_tokens_that_never_saw_it():
    def keeps(**changes):
        steps = describe(make(**changes)).steps
        return [s.keep_beta for s in steps if isinstance(s, NormFold) and s.norm == "layers.1.blocks.0.norm1"]

    assert keeps() == [False]
    assert keeps(window_size=3, img_size=20) == [True]
    assert keeps(strict_img_size=False) == [True]


@pytest.mark.parametrize("small", [0.0, 1e-6, 0.02])
def test_channels_that_a_merging_norm_all_but_closes_do_not_break_the_function(small, respelled):
    model = make(depths=(1, 1, 1), num_heads=(4, 4, 8))

    assert respelled(model, describe(model), small) < ROUNDING


def test_folding_beta_under_padding_is_caught():
    model = make(window_size=3, img_size=20)
    tiled = describe(make())

    assert verify_symmetry(make(), tiled)
    assert not verify_symmetry(model, tiled)


def test_cosine_attention_lets_queries_and_keys_only_rotate():
    maps = describe(make(SwinTransformerV2)).spaces["layers.0.blocks.0.heads"].maps

    assert maps == {"query_key": "orthogonal", "value": "linear"}


def test_temperatures_and_position_biases_follow_the_heads():
    heads = "layers.0.blocks.0.heads"
    first = {axis.tensor for axis in describe(make()).of(heads) if not axis.part}
    second = {axis.tensor for axis in describe(make(SwinTransformerV2)).of(heads) if not axis.part}

    attention = "layers.0.blocks.0.attn"
    assert first == {f"{attention}.relative_position_bias_table"}
    assert second == {f"{attention}.logit_scale", f"{attention}.cpb_mlp.2.weight"}


@pytest.mark.parametrize("cls", [SwinTransformer, SwinTransformerV2])
@pytest.mark.parametrize(
    "module", ["layers.1.downsample", "layers.0.blocks.0", "layers.0.blocks.0.attn", "layers.0.blocks.0.mlp", "head"]
)
def test_a_part_that_is_not_known_is_named(cls, module):
    model = make(cls)
    original = model.get_submodule(module)
    parent, _, last = module.rpartition(".")
    # Same tensors and attributes, another type: it might compute anything.
    stranger = type("Stranger", (nn.Module,), {"__getattr__": lambda self, name: getattr(original, name)})()
    setattr(model.get_submodule(parent), last, stranger)

    with pytest.raises(ModelError, match=rf"module '{module}' is a Stranger, expected"):
        describe(model)


def test_swin_v2_cr_is_another_family():
    model = SwinTransformerV2Cr(img_size=32, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,), num_classes=3)

    with pytest.raises(ModelError, match=r"SwinTransformerV2Cr is of no described family"):
        describe(model)
