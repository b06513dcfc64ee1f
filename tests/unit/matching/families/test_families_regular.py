"""Models of regular fields: whole fields move, so that moved models and their means stay exactly equivariant."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from timm import create_model
from timm.layers import GroupNorm
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn
from torch.nn import functional

from popmi_core.adapters import add_lora, attach, equivariance_error
from popmi_core.adapters.regular.layers import Readout
from popmi_core.errors import ModelError
from popmi_core.matching import Matcher, apply, canonicalise, describe_model, random_element, verify_symmetry
from popmi_core.matching.elements import compose
from popmi_core.matching.families import describe
from popmi_core.matching.statistics import as_scores, cross_statistics
from popmi_core.matching.steps import NormFold

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
NARROW = {"layers": (1, 1, 1, 1), "channels": (16, 16, 24, 32), "stem_width": 16, "num_classes": 5}
BLOCKS = [["ds_r1_k3_s1_e1_c16_se0.5"], ["ir_r2_k5_s2_e2_c24_se0.5"]]
GROUPED = [["ir_r1_k3_s2_e2_c24_gs8"]]
STAGES = {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32), "num_classes": 5}
MOBILE = {"stem_size": 16, "num_features": 48, "num_classes": 5}
# Float64 through other, equal matrices.
ROUNDING = 1e-10


def vit(**changes):
    return partial(VisionTransformer, **(VIT | changes))


# name -> (how to make the backbone, group, image size at which it is exact)
MODELS = {
    "vit": (vit(), "D4", 16),
    "vit_average_scaled": (vit(global_pool="avg", init_values=0.1, reg_tokens=2, no_embed_class=True), "C4", 16),
    "vit_no_bias_normed": (vit(qkv_bias=False, qk_norm=True), "C4", 16),
    "vit_pre_norm": (vit(pre_norm=True), "D4", 16),
    "vit_parallel": (vit(block_fn=partial(ParallelScalingBlock, fuse_out_proj=True)), "C4", 16),
    "deit": (partial(VisionTransformerDistilled, **VIT), "C4", 16),
    "resnet": (partial(ResNet, BasicBlock, **NARROW), "D4", 33),
    "resnet_bottleneck": (partial(ResNet, Bottleneck, block_args={"attn_layer": "se"}, **NARROW), "C4", 33),
    "resnext": (partial(ResNet, Bottleneck, cardinality=2, base_width=32, **NARROW), "C4", 33),
    "resnet_groupnorm": (partial(ResNet, BasicBlock, norm_layer=partial(GroupNorm, num_groups=2), **NARROW), "C4", 33),
    "convnext": (partial(create_model, "convnext_atto", **STAGES), "D4", 32),
    "convnext_of_one_field": (partial(create_model, "convnext_atto", **STAGES | {"dims": (8, 16, 24, 32)}), "D4", 32),
    "efficientnet": (lambda: EfficientNet(decode_arch_def(BLOCKS), **MOBILE), "C4", 33),
    "efficientnet_groups": (lambda: EfficientNet(decode_arch_def(GROUPED), **MOBILE), "C4", 33),
    "mobilenet": (lambda: MobileNetV3(decode_arch_def(BLOCKS), **MOBILE), "D4", 33),
}


def regular(name, seed=0):
    make, group, side = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make().double().eval()
        backbone.pretrained_cfg = {"input_size": (3, side, side)}
        model = attach(backbone, group=group, fields="regular")
        with torch.no_grad():
            for parameter in model.parameters():
                # Fresh gammas are 1 and biases 0: they would hide a forgotten fold.
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(model, count=3, seed=1):
    side = model.pretrained_cfg["input_size"][-1]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def outputs(model, state):
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(images(model))


def error(model, state):
    model.load_state_dict(state, strict=True)
    return equivariance_error(model, images(model), model.group)


def mean(first, second):
    return {name: (tensor + second[name]) / 2 for name, tensor in first.items()}


def apart(found, expected):
    return float((found - expected).norm() / expected.norm())


def kinds(symmetry):
    return {name.removeprefix("backbone."): (s.kind, s.size, s.inner) for name, s in symmetry.spaces.items()}


@pytest.fixture(scope="module", params=MODELS)
def member(request):
    model = regular(request.param)
    return model, describe(model), clone(model)


def test_a_random_move_keeps_the_function_and_the_group(member):
    model, found, state = member
    moved = [apply(state, found, random_element(found, torch.Generator().manual_seed(seed))) for seed in (1, 2)]
    try:
        assert verify_symmetry(model, found)
        before = outputs(model, state)
        assert all(apart(outputs(model, other), before) < ROUNDING for other in moved)
        assert apart(outputs(model, mean(*moved)), before) > 1e-3
        assert max(error(model, other) for other in (*moved, mean(*moved))) < ROUNDING
    finally:
        model.load_state_dict(state)


def test_a_shuffled_copy_is_put_back_in_order(member):
    model, found, state = member
    planted = random_element(found, torch.Generator().manual_seed(2))

    matched = Matcher(state, found, sweeps=30, restarts=3).match(apply(state, found, planted, like=state))

    for space, move in planted.moves.items():
        if move.perm is not None:
            left = compose(move, matched.element.moves[space]).perm if space in matched.element.moves else move.perm
            assert torch.equal(left, torch.arange(len(left))), space
    try:
        before = outputs(model, state)
        assert apart(outputs(model, dict(matched.state)), before) < ROUNDING
        # In one basis both are one model, up to the spelling of heads, which a mean averages.
        # (A single field has no other place to go, and nothing to gain.)
        assert min(gain for space, gain in matched.gains.items() if found.spaces[space].size > 1) > 1 - 1e-9
        fused = mean(canonicalise(state, found), canonicalise(matched.state, found))
        assert error(model, fused) < ROUNDING
    finally:
        model.load_state_dict(state)


def trained(model, seed):
    model = copy.deepcopy(model).train()
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = images(model, count=8, seed=seed), torch.arange(8) % 5
    for _ in range(3):
        steps.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        steps.step()
    return model.eval()


@pytest.mark.parametrize("name", ["vit", "resnet", "resnet_bottleneck", "convnext", "efficientnet", "mobilenet"])
def test_two_trained_models_fuse_to_an_exact_one(name):
    first, second = (trained(regular(name, seed), seed) for seed in (1, 2))
    state, other, found = clone(first), clone(second), describe_model(first)

    moved = dict(Matcher(state, found).match(other).state)

    assert any(not torch.equal(moved[key], other[key]) for key in other)
    assert apart(outputs(second, moved), outputs(second, other)) < ROUNDING
    assert error(second, moved) < ROUNDING
    assert error(second, mean(state, moved)) < ROUNDING


@pytest.mark.parametrize("name", ["vit", "vit_no_bias_normed", "vit_parallel", "resnet_bottleneck", "convnext"])
def test_a_description_fits_in_any_spelling_and_shows(name, respelled, tap_errors):
    model = regular(name)
    found = describe(model)

    assert respelled(model, found) < ROUNDING
    errors = tap_errors(model, found)
    assert set(errors) == set(found.spaces)
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("name", ["vit", "vit_pre_norm", "resnext", "mobilenet"])
def test_leaving_out_any_axis_is_noticed(name, idle_axes):
    model = regular(name)

    idle = idle_axes(model, describe(model))

    # Biases of keys and values are folded to zero; a vector of zeros may be moved or not.
    assert all(axis.tensor.endswith(".qkv.bias") for axis in idle)


def test_orders_of_fields_keep_the_function_in_any_spelling(member):
    model, found, state = member
    orders = found.permutations_only()
    try:
        before = outputs(model, state)
        moved = apply(state, orders, random_element(orders, torch.Generator().manual_seed(4)))
        assert apart(outputs(model, moved), before) < ROUNDING
    finally:
        model.load_state_dict(state)


def test_what_may_move_is_counted_in_fields():
    assert kinds(describe(regular("vit"))) == {
        "stream": ("orthogonal", 4, 1),
        **{f"blocks.{index}.heads": ("heads", 2, 2) for index in (0, 1)},
        **{f"blocks.{index}.mlp": ("permutation", 16, 1) for index in (0, 1)},
    }
    assert kinds(describe(regular("vit_pre_norm")))["stream"] == ("permutation", 4, 1)
    # 24 channels in two groups: three fields of C4 in each, which stay together.
    assert kinds(describe(regular("resnet_groupnorm")))["layer3"] == ("grouped", 2, 3)
    grouped = describe(regular("resnext"))
    spreads = {(axis.tensor, axis.axis): axis.spread for axis in grouped.of("backbone.layer3.0.conv2")}
    wide = grouped.spaces["backbone.layer3.0.conv2"].size
    assert wide == 2
    assert spreads["backbone.layer3.0.conv3.weight", 1] == 4 * spreads["backbone.layer3.0.conv2.weight", 0]


def test_rotations_of_channels_instead_of_fields_are_not_a_symmetry():
    """The same layer with its columns grouped by element instead of by field computes something else."""
    model = regular("vit")
    found = describe(model)
    wrong = replace(
        found,
        axes=tuple(replace(a, repeat=a.spread, spread=1) if a.spread > 1 else a for a in found.axes),
    )
    assert verify_symmetry(model, found)
    assert not verify_symmetry(model, wrong)


def test_beta_reaches_a_classifier_once_for_each_channel_of_a_field():
    model = regular("vit")
    found = describe(model)
    fold = next(step for step in found.steps if isinstance(step, NormFold) and step.readers == ("backbone.head",))
    state, order = clone(model), len(model.group)
    folded = canonicalise(state, found)

    beta = order * state["backbone.head.weight"] @ state["backbone.norm.bias"]

    assert isinstance(model.backbone.head, Readout)
    assert fold.order == order
    torch.testing.assert_close(folded["backbone.head.bias"], state["backbone.head.bias"] + beta)
    assert apart(outputs(model, folded), outputs(model, state)) < ROUNDING


def test_a_closed_field_keeps_its_beta_where_a_reader_has_no_bias():
    """Other fields make up for it, as other channels do in a plain model: the reader has fewer rows than fields."""
    noise = torch.Generator().manual_seed(6)
    state = {
        "norm.weight": torch.tensor([0.0, 1.0, 2.0, 1.5, 0.5, 1.0], dtype=torch.float64),
        "norm.bias": torch.randn(6, generator=noise, dtype=torch.float64),
        "reader.weight": torch.randn(2, 24, generator=noise, dtype=torch.float64),
    }
    folded = dict(state)

    NormFold("norm", ("reader",), keep_beta=True, order=4).fold(folded)

    constant, after = (s["reader.weight"] @ s["norm.bias"].repeat_interleave(4) for s in (state, folded))
    torch.testing.assert_close(after, constant)


def test_activations_say_the_same_of_fields_as_weights():
    model = regular("resnet")
    found, state = describe(model), clone(model)
    planted = random_element(found, torch.Generator().manual_seed(5))
    moved = apply(state, found, planted)

    statistics = cross_statistics(model, state, moved, found, images(model, count=6))

    shown = {tap.space for tap in found.taps}
    assert shown == set(found.spaces)
    for name in shown:
        scores = as_scores(statistics, found.spaces[name])
        assert torch.equal(scores.argmax(dim=0), planted.moves[name].perm), name


def test_families_without_fields_refuse_them_and_say_what_to_do():
    layer = attach(ResNet(BasicBlock, **NARROW), group="C4", fields="regular").backbone.layer1[0].conv1

    with pytest.raises(ModelError, match=r"fields, which are described in vit, .* not in mlp\. .*by hand"):
        describe(nn.Sequential(layer, nn.ReLU(), nn.Flatten()))


def test_fields_of_two_groups_in_one_model_are_refused():
    layers = [
        attach(ResNet(BasicBlock, **NARROW), group=group, fields="regular").backbone.layer1[0].conv1
        for group in ("C4", "D4")
    ]

    with pytest.raises(ModelError, match=r"fields of \[4, 8\] channels, expected one group"):
        describe(nn.Sequential(*layers))


def test_plain_models_and_low_rank_adapters_are_described_as_ever():
    plain = describe(add_lora(VisionTransformer(**VIT), rank=3))

    assert {axis.spread for axis in plain.axes} == {1}
    assert {tap.spread for tap in plain.taps} == {1}
    assert all(step.order == 1 for step in plain.steps if isinstance(step, NormFold))
    assert kinds(plain)["stream"] == ("orthogonal", 32, 1)
    assert kinds(plain)["blocks.0.attn.qkv.lora"] == ("heads", 1, 3)
    # Between fields there are none: nothing that a description would have to know.
    with pytest.raises(ModelError, match=r"expected torch.nn.Linear itself"):
        add_lora(regular("vit"), ("attn.qkv",), rank=3)
