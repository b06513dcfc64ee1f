"""PREA merged early: what is tied and what is lifted is matched, and matched models stay equivariant."""

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
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.adapters import attach, equivariance_error
from popmi_core.matching import Matcher, apply, describe_model, random_element
from popmi_core.matching.elements import compose
from popmi_core.matching.families import describe

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 1, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2),
    "num_classes": 5,
}  # fmt: skip
NARROW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16), "stem_width": 16, "num_classes": 5}
BLOCKS = [["ds_r1_k3_s1_e1_c16_se0.5"], ["ir_r2_k5_s2_e2_c24_se0.5"]]
STAGES = {"depths": (1, 1, 1, 1), "dims": (12, 12, 16, 24), "num_classes": 5}
ALL = "bottleneck+lifted-conv"
ROUNDING = 1e-10


def tied(make, side, block, group="D4", adapters=ALL, **changes):
    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = make().double().eval()
            backbone.pretrained_cfg = {"input_size": (3, side, side)}
            model = attach(backbone, group=group, merge_block=block, adapters=adapters, rank=3, **changes)
            with torch.no_grad():
                for parameter in model.parameters():
                    # As after training: tied kernels of a fresh net hold too few numbers to tell channels apart by.
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    return made, side


convnext = partial(create_model, "convnext_atto", **STAGES)
# name -> (how to make it, image size at which it is exact)
MODELS = {
    "vit_start": tied(lambda: VisionTransformer(**VIT), 16, 0),
    "vit_lora": tied(lambda: VisionTransformer(**VIT), 16, 1, adapters="lifted-conv+lora"),
    "vit_nothing": tied(lambda: VisionTransformer(**VIT), 16, 1, adapters="none", weights="lambda"),
    "deit_start": tied(lambda: VisionTransformerDistilled(**VIT), 16, 0),
    "deit_end": tied(lambda: VisionTransformerDistilled(**VIT), 16, 2),
    "swin_start": tied(lambda: SwinTransformer(**SWIN), 16, 0),
    "swin_early": tied(lambda: SwinTransformer(**SWIN), 16, 1, weights="lambda"),
    "swin_mirror": tied(lambda: SwinTransformer(**SWIN), 16, 1, group="D1"),
    "swin_end": tied(lambda: SwinTransformer(**SWIN), 16, 2, adapters="lifted-conv"),
    "swinv2_start": tied(lambda: SwinTransformerV2(**SWIN), 16, 0),
    "swinv2_early": tied(lambda: SwinTransformerV2(**SWIN), 16, 1, group="C4"),
    "convnext_start": tied(convnext, 32, 0),
    "convnext_early": tied(convnext, 32, 2, weights="lambda"),
    "resnet_start": tied(lambda: ResNet(BasicBlock, **NARROW), 33, 0, group="C4"),
    "resnet_early": tied(lambda: ResNet(Bottleneck, **NARROW), 33, 1),
    "resnet_groupnorm": tied(lambda: ResNet(BasicBlock, norm_layer=partial(GroupNorm, num_groups=4), **NARROW), 33, 2),
    "resnet20_passing": tied(lambda: create_model("popmi_resnet20", num_classes=5), 9, 3, group="C4"),
    "efficientnet_start": tied(
        lambda: EfficientNet(decode_arch_def(BLOCKS), stem_size=16, num_features=48, num_classes=5), 33, 0
    ),
    "mobilenet_early": tied(
        lambda: MobileNetV3(
            decode_arch_def(BLOCKS), stem_size=16, num_features=48, num_classes=5, act_layer=torch.nn.SiLU
        ),
        33,
        1,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def member(request):
    make, side = MODELS[request.param]
    return request.param, make(), side


def images(side):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loaded(model, state):
    model.load_state_dict(state, strict=True)
    return model


def test_a_shuffled_copy_comes_back_the_same_function_and_equivariant(member):
    name, model, side = member
    found, x = describe_model(model), images(side)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    before = model(x).detach()
    generator = torch.Generator().manual_seed(2)
    planted = random_element(found, generator)
    matched = Matcher(state, found, sweeps=30, restarts=3).match(apply(state, found, planted, like=state))

    for space, move in planted.moves.items():
        # Position networks have more units than numbers to tell them apart by, as in test_planted_families.
        if move.perm is not None and not space.endswith("cpb_mlp"):
            left = compose(move, matched.element.moves[space]).perm if space in matched.element.moves else move.perm
            assert torch.equal(left, torch.arange(len(left))), (name, space)
    try:
        after = loaded(model, dict(matched.state))(x).detach()
        error = equivariance_error(model, x, model.group)
        mean = {key: (state[key] + matched.state[key]) / 2 for key in state}
        fused = equivariance_error(loaded(model, mean), x, model.group)
    finally:
        loaded(model, state)
    # Rounding of float64 through other, equal matrices.
    assert (after - before).norm() < 1e-9 * before.norm()
    assert max(error, fused) < ROUNDING


def test_unrelated_models_stay_equivariant_when_one_is_moved_to_the_other(member):
    name, model, side = member
    found, x = describe(model), images(side)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    noise = torch.Generator().manual_seed(3)
    other = {
        key: tensor + 0.3 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=noise).to(tensor)
        if tensor.is_floating_point() and "running" not in key
        else tensor
        for key, tensor in state.items()
    }
    moved = Matcher(state, found).match(other).state
    try:
        errors = [
            equivariance_error(loaded(model, kept), x, model.group)
            for kept in (dict(moved), {key: (state[key] + moved[key]) / 2 for key in state})
        ]
    finally:
        loaded(model, state)
    assert max(errors) < ROUNDING, name


@pytest.mark.parametrize("name", ["swin_early", "convnext_start", "resnet_early", "mobilenet_early", "deit_end"])
def test_a_description_of_tied_weights_fits_in_any_spelling_and_shows(name, respelled, tap_errors):
    model = MODELS[name][0]()
    found = describe(model)

    assert respelled(model, found) < ROUNDING
    errors = tap_errors(model, found)
    assert set(errors) == set(found.spaces)
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("name", ["vit_lora", "swin_early", "swin_end"])
def test_leaving_out_any_axis_is_noticed(name, idle_axes):
    model = MODELS[name][0]()

    idle = idle_axes(model, describe(model))

    # Biases of keys and values are folded to zero; a vector of zeros may be moved or not.
    assert all(axis.tensor.endswith(".qkv.bias") for axis in idle)


def test_lifted_convolutions_lie_on_the_stream_they_adapt():
    found = describe(MODELS["convnext_early"][0]())

    on = {
        block: {axis.space for axis in found.axes if axis.tensor == f"prea.lift.{block}.up.weight" and axis.axis == 0}
        for block in (2, 3)
    }

    # What stage 2 reads was written by stage 1, what stage 3 reads by stage 2.
    assert on == {2: {"backbone.stages.1"}, 3: {"backbone.stages.2"}}


def test_tied_neighbours_are_read_once_for_each_orbit():
    repeats = {
        name: {axis.repeat for axis in describe(MODELS[name][0]()).axes if axis.tensor.endswith("reduction.weight")}
        for name in ("swin_early", "swin_mirror", "swin_end")
    }

    # One orbit under D4, two under the mirror (left and right columns change places), none tied after the end.
    assert repeats == {"swin_early": {1}, "swin_mirror": {1, 2}, "swin_end": {1, 4}}
