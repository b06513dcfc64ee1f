"""Every family, merged anywhere, is exact at the start, after training and after averaging; folded it is plain timm."""

from functools import partial

import pytest
import timm
import torch
from small_sites import averaged, images, trained
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

from popmi_core.adapters import attach, detach, equivariance_error, fold, merge_lora
from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.soft import soften
from popmi_core.adapters.trunk import depth
from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.groups import act, point_group
from popmi_core.models import build_model

# Float32 keeps 7 digits and the sums over tokens cost two; float64 keeps 16, float noise only.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 1, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2),
    "num_classes": 5,
}  # fmt: skip
NARROW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16), "stem_width": 8, "num_classes": 5}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "num_classes": 5}
BLOCKS = [["ds_r1_k3_s1_e1_c16_se0.5"], ["ir_r2_k5_s2_e2_c24_se0.5"]]
# TensorFlow's padding, which timm keeps for weights from there.
SAME = {"pad_type": "same"}
# name -> (backbone, image size at which every merge block is exact)
FAMILIES = {
    "vit_registers": (lambda: VisionTransformer(**VIT, reg_tokens=2), 16),
    "deit_distilled": (lambda: VisionTransformerDistilled(**VIT), 16),
    "swin": (lambda: SwinTransformer(**SWIN), 16),
    "swinv2": (lambda: SwinTransformerV2(**SWIN), 16),
    "convnext": (lambda: timm.create_model("convnext_atto", **STAGES), 32),
    "resnet": (lambda: ResNet(BasicBlock, **NARROW), 33),
    "bottleneck": (lambda: ResNet(Bottleneck, **NARROW), 33),
    # A subclass with an empty last stage.
    "resnet20": (lambda: timm.create_model("popmi_resnet20", num_classes=5), 9),
    "efficientnet": (
        lambda: EfficientNet(decode_arch_def(BLOCKS), stem_size=8, num_features=16, num_classes=5, **SAME), 33
    ),
    "mobilenetv3": (lambda: MobileNetV3(decode_arch_def(BLOCKS), stem_size=8, num_features=16, num_classes=5), 33),
}  # fmt: skip


def make(name, dtype=torch.float64):
    backbone, side = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = backbone().to(dtype).eval()
    return model, side


def check_everywhere(name, block, group, dtype, adapters, sites):
    backbone, side = make(name, dtype)
    start = attach(backbone, group=group, merge_block=block, adapters=adapters, rank=4)
    sites = [trained(start, side, seed) for seed in range(sites)]
    x = images(side, dtype=dtype)
    for model in (start, sites[0], averaged(sites)):
        assert equivariance_error(model, x, point_group(group)) <= TOLERANCE[dtype], (name, block, group)


BLOCK_CASES = [(name, block) for name in FAMILIES for block in range(depth(make(name)[0]) + 1)]
WHERE = {0: "C4", 1: "D4"}


@pytest.mark.parametrize(("name", "block"), BLOCK_CASES)
def test_exact_wherever_it_is_merged(name, block):
    # The groups in turn and two sites; the slow test takes all groups and five.
    check_everywhere(name, block, WHERE[block % 2], torch.float64, "bottleneck+lifted-conv", 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_in_float32_without_copies(name):
    check_everywhere(name, 0, "D4", torch.float32, "none", 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("group", ["C2", "C4", "D1", "D4"])
@pytest.mark.parametrize(("name", "block"), BLOCK_CASES)
def test_exact_for_every_group_and_format(name, block, group, dtype):
    check_everywhere(name, block, group, dtype, "bottleneck+lifted-conv", 5)


@pytest.mark.parametrize("name", ["vit_registers", "deit_distilled", "swin", "swinv2"])
def test_low_rank_adapters_after_the_merge_are_exact_and_only_there(name):
    backbone, side = make(name)
    start = attach(backbone, group="D4", merge_block=1, adapters="lifted-conv+lora", rank=3, train="adapter")
    model = trained(start, side, seed=0)
    assert equivariance_error(model, images(side), point_group("D4")) <= TOLERANCE[torch.float64]
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, start.state_dict()[n])}
    kinds = ("prea.lift.", ".lora_", "head")
    assert moved
    assert all(any(kind in n for kind in kinds) for n in moved)
    adapted = {n.split(".lora_")[0] for n in moved if ".lora_" in n}
    assert adapted
    assert not any(n.startswith(("backbone.blocks.0.", "backbone.layers.0.")) for n in adapted)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_costs_nothing_folds_into_plain_timm(name):
    backbone, side = make(name)
    lora = "lora" if name.startswith(("vit", "deit", "swin")) else "none"
    model = trained(attach(backbone, group="D4", merge_block=0, adapters=lora, rank=3), side, seed=0)
    plain, fresh = fold(model), make(name)[0]
    fresh.load_state_dict(plain.state_dict(), strict=True)
    x = images(side)
    assert [*map(type, plain.modules())] == [*map(type, fresh.modules())]
    # Swin V2's bias network is solved for; all else is the same arithmetic in another order.
    torch.testing.assert_close(fresh.eval()(x), model(x), atol=1e-9, rtol=1e-9)


def test_a_folded_model_of_timms_own_names_loads_there():
    config = AdapterConfig(group="C4", merge_block=0, adapters="lora")
    model = build_model(ModelConfig(backbone="popmi_vit_micro", image_size=32, adapter=config), 5, seed=0)
    plain = timm.create_model("popmi_vit_micro", num_classes=5, img_size=32).eval()
    taught = trained(model, 32, 0)
    plain.load_state_dict(fold(taught).state_dict(), strict=True)
    x = images(32).float()
    # Float32: kernels are written out and low-rank steps added to their layers, which sums in another order.
    torch.testing.assert_close(plain(x), taught.eval()(x), atol=1e-5, rtol=1e-5)


def test_large_windows_of_swin_v2_that_no_network_of_timms_makes_are_told():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = SwinTransformerV2(**SWIN | {"window_size": 16, "depths": (1, 1)}).double()
        model = attach(backbone, group="C4", merge_block=0, adapters="none")
        for network in (part for name, part in model.named_modules() if name.endswith("cpb_mlp")):
            for parameter in network.parameters():
                parameter.data.normal_()
    with pytest.raises(ModelError, match=r"windows of \(16, 16\) tokens cannot be written as timm's network"):
        fold(model)


def test_what_costs_something_is_not_folded():
    backbone, side = make("vit_registers")
    with pytest.raises(ModelError, match=r"merge_block 1 runs 4 copies of each image"):
        fold(attach(backbone, group="C4", merge_block=1, adapters="none"))
    with pytest.raises(ModelError, match="a bottleneck or lifted convolution is no part of a plain network"):
        fold(attach(backbone, group="C4", merge_block=0))
    with pytest.raises(ModelError, match="VisionTransformer is not under PREA"):
        fold(backbone)
    free = soften(attach(backbone, group="C4", merge_block=0, adapters="none"), free_blocks=1, image_size=side)
    with pytest.raises(ModelError, match=r"a freed table of places \(free_blocks\) is no part of a plain network"):
        fold(free)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_detaching_gives_a_backbone_of_timms_shapes_back(name, block):
    backbone, side = make(name)
    model = attach(backbone, group="C4", merge_block=block, adapters="bottleneck+lifted-conv")
    plain = detach(model)
    assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in backbone.state_dict().items()}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    if block == 0 and name != "swinv2":
        # Fresh adapters add nothing, so nothing is lost with them (Swin V2's networks come back as they are).
        torch.testing.assert_close(plain(images(side)), model(images(side)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["swin", "convnext", "resnet", "efficientnet"])
def test_what_runs_on_copies_is_left_alone_and_the_rest_is_smaller(name):
    backbone, _ = make(name)
    layers = depth(backbone)
    sizes = []
    for block in range(layers + 1):
        model = attach(backbone, group="D4", merge_block=block, adapters="none")
        sizes.append(sum(p.numel() for p in model.parameters()))
        own, paths = backbone.state_dict(), [path for path, _ in cut_of(backbone).stages(backbone)]
        tied = {n for n, t in model.backbone.state_dict().items() if t.shape != own[n].shape}
        assert not any(n.startswith(f"{path}.") for n in tied for path in paths[:block])
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == sum(p.numel() for p in backbone.parameters())


def test_merging_between_stages_is_the_mean_of_the_copies_features():
    backbone, side = make("resnet")
    x, group = images(side), point_group("C4")
    features = [torch.nn.Sequential(*list(backbone.children())[:6])(act(e, x)) for e in group.elements]
    merged = sum(act(e.inverse(), f) for e, f in zip(group.elements, features, strict=True)) / 4
    model = attach(backbone, group="C4", merge_block=2, adapters="none")
    rest = detach(model)
    torch.testing.assert_close(model(x), rest.forward_head(rest.layer4(rest.layer3(merged))), atol=1e-12, rtol=1e-12)


def test_sizes_that_are_not_exact_are_refused_before_anything_is_built():
    backbone, _ = make("resnet")
    attach(backbone, group="C4", merge_block=0, image_size=33)
    with pytest.raises(
        ModelError, match=r"ResNet at 32x32 pixels, merged after block 0, is not exact under C4 .* 33 is"
    ):
        attach(backbone, group="C4", merge_block=0, image_size=32)
    attach(backbone, group="C4", merge_block=4, image_size=32)


def test_an_approximate_size_is_taken_only_when_asked_for(monkeypatch):
    from popmi_core.adapters import prea
    from popmi_core.adapters.geometry import Geometry, Reason

    found = Geometry("approximate", (Reason("layers.1", "odd windows", "0.03"),), 64, 60, 0)
    monkeypatch.setattr(prea, "check_geometry", lambda *_, **__: found)
    backbone, _ = make("swin")
    with pytest.raises(ModelError, match=r"\(approximate\): layers\.1: odd windows \(0\.03\)\. 64 is the nearest"):
        attach(backbone, group="C4", merge_block=0, image_size=60)
    attach(backbone, group="C4", merge_block=0, image_size=60, allow_approximate=True)


def test_merged_low_rank_adapters_leave_prea_standing():
    backbone, side = make("vit_registers")
    model = trained(attach(backbone, group="C4", merge_block=1, adapters="lora", rank=2), side, seed=0)
    plain = merge_lora(model)
    torch.testing.assert_close(plain(images(side)), model(images(side)), atol=1e-12, rtol=1e-12)
    assert not any(".lora_" in name for name in plain.state_dict())


def test_convolutions_that_cannot_be_tied_are_named():
    backbone, _ = make("resnet")
    backbone.layer3[0].conv1 = torch.nn.Conv2d(8, 12, (1, 3), padding=(0, 1))
    with pytest.raises(ModelError, match=r"ResNet: 'layer3\.0\.conv1': a convolution with kernel \(1, 3\)"):
        attach(backbone, group="C4", merge_block=2)
    backbone.layer3[0].conv1 = partial(timm.layers.StdConv2d, padding=1)(8, 12, 3)
    with pytest.raises(ModelError, match="kind StdConv2d cannot be tied"):
        attach(backbone, group="C4", merge_block=2)
    backbone.layer3[0].conv1 = timm.layers.CondConv2d(8, 12, 3)
    with pytest.raises(ModelError, match="CondConv2d has a kernel that cannot be tied"):
        attach(backbone, group="C4", merge_block=2)
    oblong = SwinTransformer(**SWIN | {"img_size": (16, 32), "window_size": (4, 8)})
    with pytest.raises(ModelError, match="windows of 4x8 tokens change their shape"):
        attach(oblong, group="C4", merge_block=0)
