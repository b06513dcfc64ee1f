"""ResNet, ConvNeXt, EfficientNet, MobileNet and plain chains: what is described keeps the function, and all of it."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.layers import GroupNorm
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.errors import ModelError
from popmi_core.matching import apply, describe_model, random_element, verify_symmetry
from popmi_core.matching.builder import Builder
from popmi_core.matching.families import describe
from popmi_core.matching.families.channels import Layers


def tiny_resnet(block=BasicBlock, **changes):
    shape = {"layers": (1, 2, 1, 1), "channels": (16, 16, 24, 32), "num_classes": 5}
    return ResNet(block, **{**shape, **changes})


def tiny_groups(channels, **_):
    return GroupNorm(channels, num_groups=4)


def convnext(name="convnext_atto", **changes):
    shape = {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 24), "num_classes": 5}
    return timm.create_model(name, **{**shape, **changes})


def plain(*layers):
    return nn.Sequential(*layers)


RESNETS = {
    "basic": {},
    "bottleneck": {"block": Bottleneck},
    "group norm": {"norm_layer": tiny_groups},
    "bottleneck, group norm": {"block": Bottleneck, "norm_layer": tiny_groups},
    "layer norm": {"norm_layer": "layernorm2d"},
    "deep stem, mean pooled shortcuts": {"stem_type": "deep", "stem_width": 8, "avg_down": True},
    "tiered stem, pooled by a convolution": {"stem_type": "deep_tiered", "stem_width": 8, "replace_stem_pool": True},
    "anti-aliased": {"aa_layer": timm.layers.BlurPool2d},
    "squeeze and excitation": {"block_args": {"attn_layer": "se"}},
    "effective squeeze and excitation": {"block_args": {"attn_layer": "ese"}},
    "GELU": {"act_layer": "gelu"},
    "leaky ReLU": {"act_layer": "leaky_relu"},
    "groups in convolutions": {"block": Bottleneck, "cardinality": 4, "base_width": 16},
    "halved groups in convolutions": {"block": Bottleneck, "cardinality": 4, "base_width": 16, "block_reduce_first": 2},
    "two pools": {"global_pool": "catavgmax"},
    "no last zeros": {"zero_init_last": False},
}


@pytest.mark.parametrize("changes", RESNETS.values(), ids=RESNETS)
def test_a_random_element_keeps_what_a_resnet_computes(changes):
    torch.manual_seed(0)

    # Raises if outputs differ by more than 1e-10 relative in float64.
    found = describe_model(tiny_resnet(**changes), image_size=32)

    assert found.family == "resnet"
    assert {"stem", "layer2", "layer3", "layer4"} <= set(found.spaces)


CONVNEXTS = {
    "V1": {},
    "V2": {"name": "convnextv2_atto"},
    "V1, convolutions as MLP": {"conv_mlp": True},
    "V2, convolutions as MLP": {"name": "convnextv2_atto", "conv_mlp": True},
    "overlapping stem": {"name": "convnext_atto_ols"},
    "overlapping stem with ReLU": {"stem_type": "overlap_act", "act_layer": "relu"},
    "hidden layer in the head": {"head_hidden_size": 16},
    "norm before pooling": {"head_norm_first": True},
    "two pools": {"head_norm_first": True, "global_pool": "catavgmax"},
    "no biases": {"conv_bias": False},
    "no LayerScale": {"ls_init_value": None},
    "RMSNorm": {"name": "convnext_atto_rms"},
    "BatchNorm": {"norm_layer": "batchnorm2d", "conv_mlp": True},
    "dilated": {"output_stride": 8},
}


@pytest.mark.parametrize("changes", CONVNEXTS.values(), ids=CONVNEXTS)
def test_a_random_element_keeps_what_a_convnext_computes(changes):
    torch.manual_seed(0)

    found = describe_model(convnext(**changes), image_size=32)

    assert {"stem", "stages.1", "stages.2", "stages.3", "stages.2.blocks.1.mlp"} <= set(found.spaces)
    assert {space.kind for space in found.spaces.values()} == {"permutation"}


PLAIN = {
    "MLP": plain(nn.Flatten(), nn.Linear(48, 9), nn.GELU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)),
    "norms": plain(nn.Flatten(), nn.Linear(48, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 3)),
    "flattened pixels": plain(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(32, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    ),
    "last axis only": plain(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)),
}


@pytest.mark.parametrize("model", PLAIN.values(), ids=PLAIN)
def test_a_random_element_keeps_what_a_plain_chain_computes(model):
    assert describe_model(model, image_size=4).family == "mlp"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet18", {}),
        ("resnet26d", {}),
        ("resnet50", {"layers": (1, 2, 1, 1)}),
        ("convnext_atto", {}),
        ("convnextv2_atto", {"depths": (1, 1, 2, 1)}),
        ("efficientnet_b0", {}),
        ("tf_efficientnet_lite0", {}),
        ("efficientnet_es", {}),
        ("mobilenetv1_100", {}),
        ("mobilenetv2_100", {}),
        ("mobilenetv3_small_100", {}),
        ("mnasnet_small", {}),
        ("popmi_mlp", {}),
        ("popmi_resnet20", {}),
        ("popmi_resnet20_gn", {}),
    ],
)
def test_a_random_element_keeps_what_the_stock_models_compute(name, changes):
    torch.manual_seed(0)
    side = 28 if name.startswith("popmi") else 32

    found = describe_model(timm.create_model(name, num_classes=4, **changes), image_size=side)

    assert found.notes == ()


FAMILIES = {
    "resnet": lambda: tiny_resnet(stem_type="deep", stem_width=8, block_args={"attn_layer": "se"}),
    "grouped": lambda: tiny_resnet(norm_layer=tiny_groups),
    "convnext": lambda: convnext("convnextv2_atto", ls_init_value=1e-6),
    "efficientnet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=4),
    "mlp": lambda: timm.create_model("popmi_mlp", img_size=32, hidden=16, num_classes=4),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_description_without_one_of_its_axes_fails_the_test(family):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    found = describe(model)
    generator = torch.Generator().manual_seed(1)

    for place in torch.randperm(len(found.axes), generator=generator)[:8].tolist():
        broken = replace(found, axes=found.axes[:place] + found.axes[place + 1 :])
        assert not verify_symmetry(model, broken, image_size=32), found.axes[place]


def seen_at_taps(model, symmetry, images):
    seen, handles = {}, []
    for tap in symmetry.taps:

        def hook(_, inputs, output, tap=tap):
            value = inputs[0] if tap.side == "input" else output
            # A later layer may work in place.
            seen[tap] = value.movedim(tap.axis, 0)[tap.start : tap.stop].clone()

        handles.append(model.get_submodule(tap.module).register_forward_hook(hook))
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_show_the_space_that_they_name(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().double().eval()
    found = describe(model).permutations_only()
    element = random_element(found, torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    before = seen_at_taps(model, found, images)
    model.load_state_dict(apply(model.state_dict(), found, element))
    after = seen_at_taps(model, found, images)

    assert {tap.space for tap in found.taps} == set(found.spaces)
    for tap, values in before.items():
        # Sums in another order.
        torch.testing.assert_close(after[tap], values[element.moves[tap.space].perm], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["popmi_resnet20", "popmi_mlp"])
def test_grey_images_are_no_obstacle(name):
    assert describe_model(timm.create_model(name, num_classes=2, in_chans=1)).spaces


def test_running_statistics_move_but_say_nothing_about_units():
    found = describe(tiny_resnet())

    follows = {axis.tensor.rpartition(".")[2] for axis in found.axes if not axis.counts}

    assert follows == {"running_mean", "running_var"}


def test_units_before_relu_may_be_scaled_and_streams_may_not():
    found = describe(tiny_resnet())

    assert {name for name, space in found.spaces.items() if space.rescalable} == {
        f"{block}.conv1" for block in ("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0")
    }
    assert not any(space.rescalable for space in describe(tiny_resnet(act_layer="gelu")).spaces.values())
    assert not any(space.rescalable for space in describe(tiny_resnet(act_layer="relu6")).spaces.values())


def test_group_norm_keeps_its_groups_together():
    found = describe(tiny_resnet(norm_layer=tiny_groups))

    space = found.spaces["layer4"]

    assert (space.kind, space.size, space.inner) == ("grouped", 4, 8)


def test_channels_around_a_convolution_with_groups_move_as_whole_groups():
    found = describe(tiny_resnet(Bottleneck, cardinality=4, base_width=16))

    assert found.spaces["layer1.0.conv2"].size == 4
    assert found.notes[0].startswith("layer1.0.conv2: groups of channels move as wholes")


def test_groups_of_a_norm_that_cut_groups_of_a_convolution_stay():
    model = tiny_resnet(Bottleneck, cardinality=8, base_width=16, norm_layer=tiny_groups)

    found = describe_model(model, image_size=32)

    assert "layer1.0.conv2" not in found.spaces
    assert "layer1.0.conv2 fixed: the groups of its norm and of its convolution overlap" in found.notes


def test_attention_along_neighbouring_channels_fixes_the_stream():
    found = describe_model(tiny_resnet(block_args={"attn_layer": "eca"}), image_size=32)

    assert "layer4" not in found.spaces
    assert "layer4 fixed: its channel attention convolves neighbouring channels" in found.notes
    assert "layer4.0.conv1" in found.spaces


@pytest.mark.parametrize(
    ("made", "last"),
    [
        (tiny_resnet, "layer4"),
        (convnext, "stages.3"),
        (partial(timm.create_model, "mobilenetv3_small_050"), "conv_head"),
    ],
    ids=["resnet", "convnext", "efficientnet"],
)
def test_features_that_are_the_output_stay(made, last):
    found = describe_model(made(num_classes=0), image_size=32)

    assert f"{last} fixed: the features are the output" in found.notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("skresnet18", "module 'layer1.0' is a SelectiveKernelBasic, expected timm's BasicBlock or Bottleneck"),
        ("mobilenetv4_conv_small_035", "module 'blocks.2.0' is a UniversalInvertedResidual, expected a block of"),
        ("mixnet_s", "module 'blocks.1.0.conv_pw' is a MixedConv2d, expected a convolution"),
        ("efficientnet_b0_g8_gn", "module 'blocks.0.0.conv_dw' is a Conv2d with 4 groups, expected a convolution with"),
    ],
)
def test_an_unknown_block_is_named(name, message):
    with pytest.raises(ModelError, match=message):
        describe(timm.create_model(name, num_classes=2))


def test_unknown_parts_of_known_blocks_are_named():
    other = tiny_resnet()
    other.layer2[1].bn1 = nn.InstanceNorm2d(16)
    with pytest.raises(ModelError, match=r"module 'layer2.1.bn1' is a InstanceNorm2d, expected a BatchNorm"):
        describe(other)

    with pytest.raises(ModelError, match=r"'layer1.0.se' is a CbamModule, expected squeeze and excitation"):
        describe(tiny_resnet(block_args={"attn_layer": "cbam"}))

    stemless = tiny_resnet()
    stemless.conv1 = nn.Identity()
    with pytest.raises(ModelError, match=r"module 'conv1' is a Identity, expected a convolution"):
        describe(stemless)

    other = convnext()
    other.stages[0].blocks[0] = nn.Identity()
    with pytest.raises(ModelError, match=r"'stages.0.blocks.0' is a Identity, expected timm's ConvNeXtBlock"):
        describe(other)

    other = convnext()
    other.stages[0].blocks[0].mlp = nn.Identity()
    with pytest.raises(ModelError, match=r"'stages.0.blocks.0.mlp' is a Identity, expected an MLP of timm"):
        describe(other)


def test_a_chain_with_an_unknown_layer_is_refused():
    with pytest.raises(ModelError, match=r"module '1' is a Softmax, expected an activation, a norm, a pool"):
        describe(plain(nn.Linear(4, 4), nn.Softmax(dim=-1), nn.Linear(4, 2)))
    with pytest.raises(ModelError, match="expected a chain with at least one linear layer or convolution"):
        describe(plain(nn.Flatten(), nn.ReLU()))


def test_a_width_is_only_told_of_layers_with_weights():
    with pytest.raises(ModelError, match=r"module 'act' is a ReLU, expected a convolution"):
        Layers(Builder("mine", {})).width("act", nn.ReLU())
