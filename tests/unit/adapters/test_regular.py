"""Regular fields: exact whatever the weights, at the plain cost, fewer numbers, and orientation is not lost."""

import copy
from functools import partial

import pytest
import timm
import torch
from small_sites import averaged, images, trained
from timm.layers import freeze_batch_norm_2d
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from popmi_core.adapters import attach, detach, equivariance_error, fold
from popmi_core.adapters.soft import soften
from popmi_core.errors import ModelError
from popmi_core.groups import act, channel_permutation, point_group

# Float32 keeps 7 digits and the sums over tokens cost two; float64 keeps 16, float noise only.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
NARROW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8, "num_classes": 5}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 5}
BLOCKS = [["ds_r1_k3_s1_e1_c16_se1.0"], ["ir_r2_k5_s2_e2_c24_se0.5"]]
NET = {"stem_size": 8, "num_features": 16, "num_classes": 5}
GROUPED = {"norm_layer": partial(timm.layers.GroupNorm, num_groups=2), **NARROW}
INVERTED = ("uir_r1_a3_k5_s2_e2_c16", "uir_r1_a0_k3_s1_e2_c16")
ATTENDING = {
    "block_args": decode_arch_def([["cn_r1_k3_s1_e1_c16"], [INVERTED[0], "mha_r1_k3_h8_s1_d8_c16", INVERTED[1]]]),
    "layer_scale_init_value": None,
}
UNTRACKED = partial(torch.nn.BatchNorm2d, track_running_stats=False)
# name -> (backbone, image size at which it is exact)
FAMILIES = {
    "vit": (lambda: VisionTransformer(**VIT, reg_tokens=2, init_values=0.5, qk_norm=True), 16),
    "vit_pooled": (lambda: VisionTransformer(**VIT, class_token=False, global_pool="avg", pos_embed="none"), 16),
    "vit_unplaced": (lambda: VisionTransformer(**VIT, pos_embed="none"), 16),
    "deit_distilled": (lambda: VisionTransformerDistilled(**VIT), 16),
    "convnext": (lambda: timm.create_model("convnext_atto", **STAGES), 32),
    "convnext_without_scales": (lambda: timm.create_model("convnext_atto", **STAGES, ls_init_value=None), 32),
    "convnext_conv_mlp": (lambda: timm.create_model("convnext_atto", **STAGES, conv_mlp=True), 32),
    "resnet": (lambda: ResNet(BasicBlock, **NARROW), 33),
    "resnext": (lambda: ResNet(Bottleneck, **NARROW | {"channels": 4 * (16,)}, cardinality=2, base_width=32), 33),
    "resnet_gn": (lambda: ResNet(BasicBlock, **GROUPED | {"channels": (16, 16, 16, 16), "stem_width": 16}), 33),
    "efficientnet": (lambda: EfficientNet(decode_arch_def(BLOCKS), **NET, pad_type="same"), 33),
    "mobilenetv3": (lambda: MobileNetV3(decode_arch_def(BLOCKS), **NET), 33),
}  # fmt: skip


def make(name, dtype=torch.float64):
    backbone, side = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = backbone().to(dtype).eval()
        # Layers that start at zero or one would hide what they break.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, side


def regular(name, group, dtype=torch.float64):
    backbone, side = make(name, dtype)
    return attach(backbone, group=group, fields="regular", image_size=side), side


@pytest.mark.parametrize(
    ("name", "group", "dtype"),
    [(name, "C4", torch.float64) for name in FAMILIES]
    + [(name, "D4", torch.float32) for name in ("vit_pooled", "convnext", "resnet", "resnet_gn")]
    + [("efficientnet", "C2", torch.float64), ("resnext", "D4", torch.float64)],
)
def test_exact_at_the_start_after_training_and_after_averaging(name, group, dtype):
    start, side = regular(name, group, dtype)
    sites = [trained(start, side, seed) for seed in range(2)]
    x = images(side, dtype=dtype)
    moved = [
        tensor for key, tensor in sites[0].state_dict().items() if not torch.equal(tensor, start.state_dict()[key])
    ]
    assert moved
    for model in (start, sites[0], averaged(sites)):
        assert equivariance_error(model, x, point_group(group)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", FAMILIES)
def test_folded_it_is_timms_own_model(name):
    start, side = regular(name, "C4")
    model, fresh = trained(start, side, 0), make(name)[0]
    plain = fold(model)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert [*map(type, plain.modules())] == [*map(type, fresh.modules())]
    # The same dense numbers in the same layers.
    torch.testing.assert_close(fresh.eval()(images(side)), model(images(side)), atol=1e-12, rtol=1e-12)
    given = detach(model)
    assert all(torch.equal(given.state_dict()[key], value) for key, value in plain.state_dict().items())
    assert {key: value.shape for key, value in given.state_dict().items()} == {
        key: value.shape for key, value in fresh.state_dict().items()
    }
    assert not any(hasattr(module, "order") for module in plain.modules())


def test_a_folded_model_takes_its_norms_numbers_apart_only_when_trained_on():
    model, side = regular("resnet", "C4")
    plain = trained(fold(model), side, 0)
    assert equivariance_error(plain, images(side), point_group("C4")) > 1e-6


@pytest.mark.parametrize(("name", "group"), [("vit", "C4"), ("resnet", "D4"), ("convnext", "C4")])
def test_it_costs_what_the_plain_backbone_costs_and_stores_a_fraction(name, group):
    model, side = regular(name, group)
    plain = make(name)[0]
    counts = []
    for each in (model, plain):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            each(images(side))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    numbers = [sum(p.numel() for p in each.parameters()) for each in (model, plain)]
    order = len(point_group(group))
    # All but the classes' biases, one of which is stored by each classifier.
    assert numbers[0] == (numbers[1] - 5) // order + 5


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_features_turn_with_the_image_as_regular_fields_do(group):
    symmetry = point_group(group)
    model, side = regular("resnet_gn", group)
    x = images(side)
    maps = model.backbone.forward_features(x)
    for element in symmetry.elements:
        turned = act(element, maps).unflatten(1, (-1, len(symmetry)))
        expected = turned[:, :, channel_permutation(symmetry, element)].flatten(1, 2)
        torch.testing.assert_close(model.backbone.forward_features(act(element, x)), expected, atol=1e-10, rtol=1e-10)


def test_orientation_of_patches_is_seen_which_trivial_fields_lose():
    backbone, side = make("vit")
    x = images(side)
    # Every patch turned in its place: to invariant kernels that is the same image.
    patches = x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).transpose(3, 4)
    spun = torch.rot90(patches, 1, (4, 5)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    trivial, fields = (attach(backbone, group="C4", merge_block=0, fields=kind) for kind in ("trivial", "regular"))
    torch.testing.assert_close(trivial(spun), trivial(x), atol=1e-10, rtol=1e-10)
    # Ten thousand times what rounding leaves.
    assert float((fields(spun) - fields(x)).detach().abs().max()) > 1e-4


def test_a_field_starts_from_the_numbers_of_its_first_channel():
    backbone, _ = make("resnet")
    model = attach(backbone, group="C4", fields="regular")
    own, stored = backbone.state_dict(), model.backbone.state_dict()
    for key in ("conv1.weight", "layer2.0.conv2.weight", "bn1.weight", "bn1.running_var", "layer3.0.bn1.bias"):
        assert torch.equal(stored[key], own[key][::4])
    assert torch.equal(stored["fc.weight"], own["fc.weight"].unflatten(1, (-1, 4)).mean(dim=2))
    assert torch.equal(stored["fc.bias"], own["fc.bias"])
    assert torch.equal(backbone.state_dict()["conv1.weight"], own["conv1.weight"])


def test_free_numbers_can_be_swapped_in_for_a_call_and_leave_no_trace():
    model, side = regular("vit", "C4")
    twice = {key: 2 * value for key, value in model.named_parameters()}
    before = model(images(side))
    other = functional_call(model, twice, (images(side),))
    copied = copy.deepcopy(model)
    copied.load_state_dict({key: twice.get(key, value) for key, value in model.state_dict().items()})
    torch.testing.assert_close(copied(images(side)), other, atol=1e-12, rtol=1e-12)
    assert torch.equal(model(images(side)), before)


def test_only_the_head_trains_where_the_backbone_is_frozen():
    backbone, _ = make("resnet")
    model = attach(backbone, group="C4", fields="regular", train="adapter")
    assert {key for key, value in model.named_parameters() if value.requires_grad} == {
        "backbone.fc.weight", "backbone.fc.bias",
    }  # fmt: skip


def test_what_is_frozen_stays_frozen_and_what_trains_trains():
    backbone, _ = make("vit")
    backbone.requires_grad_(False)
    backbone.head.requires_grad_(True)
    model = attach(backbone, group="C4", fields="regular")
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        "backbone.head.weight", "backbone.head.bias",
    }  # fmt: skip


def test_layers_are_not_drawn_anew_behind_the_stored_numbers_back():
    model, _ = regular("resnet", "C4")
    with pytest.raises(ModelError, match="is not drawn anew"):
        model.get_classifier().reset_parameters()


def test_patches_may_be_dropped_in_training():
    backbone = VisionTransformer(**VIT, patch_drop_rate=0.5).double()
    model = attach(backbone, group="C4", fields="regular").train()
    assert model(images(16)).shape == (3, 5)


def test_unknown_fields_are_refused():
    with pytest.raises(ModelError, match="fields 'Regular' is not known, expected one of trivial, regular"):
        attach(make("vit")[0], group="C4", fields="Regular")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"merge_block": 1}, "fields 'regular' with merge_block 1: nothing is merged"),
        ({"weights": "lambda"}, "with weights 'lambda'"),
        ({"adapters": "bottleneck+lora"}, r"with adapters 'bottleneck\+lora'.*or take trivial fields"),
    ],
)
def test_what_belongs_to_copies_and_adapters_is_refused(options, told):
    with pytest.raises(ModelError, match=told):
        attach(make("vit")[0], group="C4", fields="regular", **options)


def test_regular_fields_are_not_softened():
    model, side = regular("vit", "C4")
    with pytest.raises(ModelError, match="regular fields see orientation already"):
        soften(model, free_blocks=1, image_size=side)


def changed(name, **modules):
    backbone, _ = make(name)
    for path, module in modules.items():
        owner, _, last = path.replace("__", ".").rpartition(".")
        setattr(backbone.get_submodule(owner), last, module)
    return backbone


@pytest.mark.parametrize(
    ("backbone", "group", "told"),
    [
        (lambda: VisionTransformer(**VIT | {"embed_dim": 24}), "C4", r"'blocks\.0\.attn': 6 channels of a head"),
        (lambda: ResNet(BasicBlock, **NARROW | {"channels": (8, 8, 12, 16)}), "D4", "12 channels written, expected"),
        (lambda: ResNet(BasicBlock, **GROUPED), "D4", "4 channels of a norm's group, expected whole"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "C4", "not known in SwinTransformer, only in"),
        (lambda: timm.create_model("test_mambaout"), "C4", "regular fields are not known in MambaOut"),
        (lambda: VisionTransformer(**VIT | {"img_size": 18}), "C4", "square patches that tile .* tile 18x18"),
        (lambda: changed("resnet", layer1__0__bn1=torch.nn.PReLU(8)), "C4", r"'layer1\.0\.bn1': PReLU is not known"),
        (lambda: changed("resnet", fc=torch.nn.Bilinear(16, 16, 5)), "C4", "'fc': a classifier of kind Bilinear"),
        (lambda: changed("resnet", layer1__0__conv1=torch.nn.Conv2d(8, 8, 3, groups=4)), "C4", "2 channels written"),
        (lambda: changed("resnet", layer1__0__conv1=torch.nn.Conv2d(8, 16, 3, groups=4)), "C4", "2 channels read"),
        (lambda: changed("resnet", layer1__0__conv1=torch.nn.Conv2d(8, 16, 3, groups=8)), "C4", "2 channels written"),
        (lambda: changed("resnet", layer1__0__conv1=torch.nn.Conv2d(8, 8, (1, 3))), "C4", "a kernel of 1x3 pixels"),
        (lambda: changed("resnet", fc=torch.nn.Identity()), "C4", "kind Identity, expected a linear layer. Give the"),
        (lambda: freeze_batch_norm_2d(make("resnet")[0]), "C4", "FrozenBatchNorm2d is not known"),
        (lambda: ResNet(BasicBlock, **NARROW, norm_layer=UNTRACKED), "C4", "BatchNorm without running statistics"),
        (lambda: MobileNetV3(**ATTENDING, **NET), "C4", "2 channels of a head"),
        (lambda: VisionTransformer(**VIT, dynamic_img_size=True), "C4", "PatchEmbed with dynamic_img_size"),
        (lambda: timm.create_model("vit_small_resnet26d_224"), "C4", "got HybridEmbed"),
        (lambda: changed("resnet", bn1=torch.nn.BatchNorm2d(6)), "C4", r"'bn1\.weight': 6 channels, expected whole"),
    ],
)  # fmt: skip
def test_what_is_no_whole_field_or_not_known_is_named(backbone, group, told):
    with pytest.raises(ModelError, match=told):
        attach(backbone(), group=group, fields="regular")


def test_sizes_that_are_not_exact_are_refused():
    with pytest.raises(ModelError, match=r"ResNet at 32x32 pixels.* or take trivial fields, merged later"):
        attach(make("resnet")[0], group="C4", fields="regular", image_size=32)
