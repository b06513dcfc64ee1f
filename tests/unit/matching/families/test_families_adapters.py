"""PREA and low-rank adapters join the description of their backbone, on the group that stays exact with them."""

from functools import partial

import pytest
import torch
from timm import create_model
from timm.layers import GroupNorm, SwiGLU
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.adapters import attach, equivariance_error
from popmi_core.adapters.lora import add_lora, merge_lora
from popmi_core.errors import ModelError
from popmi_core.groups import point_group
from popmi_core.matching.check import describe_model, input_shape
from popmi_core.matching.elements import apply, random_element
from popmi_core.matching.families import describe
from popmi_core.matching.families.adapters import FeatureFold
from popmi_core.models import exchanged_state

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (4, 4),
    "num_classes": 5,
}
ALL = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
# Rounding of two float64 passes through different but equal matrices; a wrong group is off by about one.
ROUNDING = 1e-10


def vit(cls=VisionTransformer, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**(VIT | changes)).double().eval()


def swin(cls=SwinTransformer, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**(SWIN | changes)).double().eval()


def study_net(name, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(name, num_classes=5, **changes).double().eval()


def sized(net):
    net.pretrained_cfg = {"input_size": (3, 32, 32)}
    return net.double().eval()


def resnet(**changes):
    shape = {"block": Bottleneck, "layers": (1, 1, 1, 1), "channels": (16, 16, 24, 32), "num_classes": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sized(ResNet(**(shape | changes)))


def convnext(name, **changes):
    return study_net(name, depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), **changes)


def mbconv(cls=EfficientNet, **changes):
    """Two stages of inverted residuals with squeeze and excitation."""
    text = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e2_c16_se0.25"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = cls(decode_arch_def(text), stem_size=8, num_features=24, num_classes=5, act_layer=nn.SiLU, **changes)
        return sized(net)


def prea(backbone, **changes):
    return attach(backbone, **({"group": "C4", "rank": 5} | changes))


def lora(model, targets=ALL):
    return add_lora(model, targets, rank=3, alpha=7)


MODELS = {
    "prea_vit_folded": lambda: prea(vit(), merge_block=0),
    "prea_vit_early": lambda: prea(vit(), merge_block=1, weights="lambda"),
    "prea_vit_last": lambda: prea(vit(), merge_block=2, group="D4"),
    "prea_vit_adapter_only": lambda: prea(vit(), merge_block=1, train="adapter"),
    "prea_deit": lambda: prea(vit(VisionTransformerDistilled)),
    "prea_swin": lambda: prea(swin()),
    "prea_swin_lambda": lambda: prea(swin(), weights="lambda"),
    "prea_swin_padded": lambda: prea(swin(window_size=3, img_size=20)),
    "prea_swin_max": lambda: prea(swin(global_pool="max")),
    "prea_swinv2": lambda: prea(swin(SwinTransformerV2), weights="lambda"),
    "lora_vit": lambda: lora(vit(init_values=0.1)),
    "lora_vit_no_bias": lambda: lora(vit(qkv_bias=False)),
    "lora_vit_no_proj_bias": lambda: lora(vit(proj_bias=False)),
    "lora_vit_pre_norm": lambda: lora(vit(pre_norm=True)),
    "lora_swiglu": lambda: lora(vit(mlp_layer=SwiGLU), ("fc1_g", "fc1_x", "fc2", "attn.qkv", "head")),
    "lora_swin": lambda: lora(swin(), (*ALL, "reduction", "head.fc")),
    "lora_swinv2": lambda: lora(swin(SwinTransformerV2), (*ALL, "reduction")),
    "lora_prea_vit": lambda: lora(prea(vit(), merge_block=0)),
    "lora_prea_swin": lambda: lora(prea(swin())),
    "lora_mlp": lambda: lora(study_net("popmi_mlp", img_size=6, hidden=12), ("fc1", "fc2", "head")),
    "lora_resnet": lambda: lora(study_net("popmi_resnet20"), ("fc",)),
    "lora_resnet_gn": lambda: lora(study_net("popmi_resnet20_gn"), ("fc",)),
    "prea_resnet": lambda: prea(study_net("popmi_resnet20")),
    "prea_resnet_gn": lambda: prea(study_net("popmi_resnet20_gn")),
    "prea_bottleneck": lambda: prea(resnet(), group="D4"),
    "prea_bottleneck_gn": lambda: prea(resnet(norm_layer=partial(GroupNorm, num_groups=4))),
    "prea_convnext": lambda: prea(convnext("convnext_atto")),
    "prea_convnextv2": lambda: prea(convnext("convnextv2_atto"), weights="lambda"),
    "prea_efficientnet": lambda: prea(mbconv()),
    "prea_mobilenetv3": lambda: prea(mbconv(MobileNetV3)),
    "lora_deit": lambda: lora(vit(VisionTransformerDistilled), (*ALL, "head", "head_dist")),
    "lora_bottleneck": lambda: lora(resnet(), ("fc",)),
    "lora_convnext": lambda: lora(convnext("convnext_atto", conv_mlp=False), ("mlp.fc1", "mlp.fc2", "head.fc")),
    "lora_convnextv2": lambda: lora(convnext("convnextv2_atto", conv_mlp=False), ("mlp.fc1", "mlp.fc2")),
    "lora_efficientnet": lambda: lora(mbconv(), ("classifier",)),
    "lora_prea_convnext": lambda: lora(prea(convnext("convnext_atto", conv_mlp=False)), ("mlp.fc1", "head.fc")),
    "lora_prea_resnet": lambda: lora(prea(study_net("popmi_resnet20")), ("fc",)),
}


def shaken(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_with_adapters_gets_a_group_that_keeps_the_function(name, respelled):
    model = MODELS[name]()

    found = describe_model(model)

    assert respelled(model, found) < ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_every_space_shows_in_some_activation(name, tap_errors):
    model = MODELS[name]()
    found = describe(model)

    errors = tap_errors(model, found)

    assert set(errors) == set(found.spaces)
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("name", ["prea_vit_early", "prea_swin_lambda", "lora_vit"])
def test_leaving_out_any_axis_is_noticed(name, idle_axes):
    model = MODELS[name]()

    idle = idle_axes(model, describe(model))

    # Biases of keys and values are folded to zero; a vector of zeros may be moved or not.
    assert all(axis.tensor.endswith(".qkv.bias") for axis in idle)


@pytest.mark.parametrize("name", ["prea_swin_lambda", "lora_swin", "lora_prea_swin"])
@pytest.mark.parametrize("small", [0.0, 0.02])
def test_channels_that_the_last_norm_all_but_closes_do_not_break_the_function(name, small, respelled):
    model = MODELS[name]()

    assert respelled(model, describe(model), small) < ROUNDING


def test_prea_stands_on_the_residual_stream_of_a_vit():
    found = describe(MODELS["prea_vit_early"]())

    on_stream = {axis.tensor for axis in found.of("backbone.stream") if axis.tensor.startswith("prea.")}

    assert on_stream == {"prea.down.weight", "prea.up.weight", "prea.up.bias", "prea.score.weight"}
    assert found.spaces["prea.hidden"].size == 5


def test_prea_on_swins_last_map_lets_the_stage_still_rotate():
    found = describe(MODELS["prea_swin_lambda"]())

    folds = [step for step in found.steps if isinstance(step, FeatureFold)]

    assert found.spaces["backbone.layers.1.stream"].kind == "orthogonal"
    assert [(step.norm, step.readers, step.writers) for step in folds] == [
        ("backbone.norm", ("backbone.head.fc", "prea.down", "prea.score"), ("prea.up",))
    ]


def test_prea_on_an_mlp_which_has_no_map_to_turn_is_refused_in_words():
    # Two images in four turned copies, 12 hidden units.
    refused = r"Mlp gives features of shape \(8, 12\), expected a square map. PREA cannot turn these; choose another"

    with pytest.raises(ModelError, match=refused):
        describe_model(prea(study_net("popmi_mlp", img_size=6, hidden=12)))


def test_prea_on_features_that_are_the_output_moves_only_its_own_units(respelled):
    model = prea(swin(num_classes=0))

    found = describe_model(model)

    assert {axis.tensor for axis in found.axes if axis.tensor.startswith("prea.")} == {
        "prea.down.weight",
        "prea.down.bias",
        "prea.up.weight",
    }
    assert respelled(model, found) < ROUNDING


@pytest.mark.parametrize("name", [name for name in MODELS if "prea" in name])
def test_a_moved_model_and_its_average_with_the_original_stay_equivariant(name):
    model = shaken(MODELS[name]())
    shape = input_shape(model)
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group, found = point_group("D4" if name == "prea_vit_last" else "C4"), describe(model)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    moved = apply(state, found, random_element(found, torch.Generator().manual_seed(2)))
    model.load_state_dict(moved, strict=True)
    after = equivariance_error(model, images, group)
    model.load_state_dict({key: (state[key] + moved[key]) / 2 for key in state}, strict=True)
    fused = equivariance_error(model, images, group)

    # Float64 keeps 16 digits, and the spread of the logits may be small: equal up to rounding.
    assert max(after, fused) < 1e-9


def test_factors_follow_the_spaces_of_their_layer():
    found = describe(lora(vit()))
    layer = "blocks.0.attn.qkv"

    def where(tensor, axis):
        own = f"{layer}.lora"
        return [
            (a.space, a.part, a.dual, a.start, a.stop)
            for a in found.axes
            if a.tensor == tensor and a.axis == axis and a.space != own
        ]

    assert found.spaces[f"{layer}.lora"].width("factor") == 3
    assert where(f"{layer}.lora_A.weight", 1) == where(f"{layer}.weight", 1) != []
    assert where(f"{layer}.lora_B.weight", 0) == where(f"{layer}.weight", 0)
    assert len(where(f"{layer}.lora_B.weight", 0)) == 3


def test_merging_the_moved_factors_gives_a_stock_model_of_the_same_function():
    model = shaken(lora(vit(init_values=0.1)))
    found = describe_model(model)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(images)

    model.load_state_dict(apply(state, found, random_element(found, torch.Generator().manual_seed(2)), like=state))
    plain = vit(init_values=0.1)
    plain.load_state_dict(merge_lora(model).state_dict(), strict=True)

    with torch.no_grad():
        assert (plain(images) - before).norm() < ROUNDING * before.norm()


def test_with_a_frozen_base_only_the_factors_spaces_are_matched(respelled):
    model = lora(vit())
    found = describe(model)
    names = set(exchanged_state(model))

    kept = found.within(names)

    assert set(kept.spaces) == {name for name in found.spaces if name.endswith(".lora")} != set()
    assert kept.names() <= names
    assert any("not all of their tensors travel" in note for note in kept.notes)
    assert respelled(model, kept) < ROUNDING


def test_with_a_frozen_backbone_only_preas_units_are_matched():
    model = MODELS["prea_vit_adapter_only"]()

    kept = describe(model).within(set(exchanged_state(model)))

    assert set(kept.spaces) == {"prea.hidden"}


def test_a_whole_model_that_travels_keeps_its_whole_group():
    found = describe(vit())

    assert found.within(set(vit().state_dict())) == found
