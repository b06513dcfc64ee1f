"""A random element planted in any family is found 20 of 20 times, with as much noise as there are weights."""

import pytest
import torch
from timm import create_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.adapters import attach
from popmi_core.adapters.lora import add_lora
from popmi_core.matching import Matcher, apply, describe_model, random_element

SEEDS = 20
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4),
    "num_classes": 5,
}  # fmt: skip
BLOCKS = [["ds_r1_k3_s1_e1_c16_se0.5"], ["ir_r2_k3_s2_e2_c24_se0.5"]]
MODELS = {
    "resnet": lambda: create_model("popmi_resnet20", num_classes=5),
    "resnet_groupnorm": lambda: create_model("popmi_resnet20_gn", num_classes=5),
    "mlp": lambda: create_model("popmi_mlp", img_size=8, hidden=48, num_classes=5),
    "bottleneck": lambda: ResNet(Bottleneck, layers=(1, 1, 1, 1), channels=(16, 16, 24, 32), num_classes=5),
    "convnext": lambda: create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 24, 32), num_classes=5),
    "efficientnet": lambda: EfficientNet(decode_arch_def(BLOCKS), stem_size=16, num_features=48, num_classes=5),
    "swin": lambda: SwinTransformer(**SWIN),
    "swinv2": lambda: SwinTransformerV2(**SWIN),
    "deit": lambda: VisionTransformerDistilled(**VIT),
    "vit_prea": lambda: attach(VisionTransformer(**VIT), group="C4", rank=6),
    "vit_lora": lambda: add_lora(VisionTransformer(**VIT), ("attn.qkv", "mlp.fc1"), rank=3),
}
SIZED = {name for name in MODELS if name not in ("bottleneck", "efficientnet")}


def noisy(state, noise, generator):
    """Return the state with noise of this share of every tensor's spread; statistics and counters stay."""
    return {
        name: tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator).to(tensor)
        if tensor.is_floating_point() and "running" not in name
        else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", MODELS)
def test_planted_orders_are_found_every_time(family, noise):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[family]().double().eval()
    symmetry = describe_model(model, image_size=None if family in SIZED else 32)
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    matcher = Matcher(reference, symmetry)
    # Position networks: 512 units of five or seven numbers each. With noise the nearest is often another one.
    told_apart = [name for name in symmetry.spaces if noise == 0 or not name.endswith("cpb_mlp")]
    ordered = [name for name in told_apart if symmetry.spaces[name].kind != "orthogonal"]

    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        planted = random_element(symmetry, generator)
        found = matcher.match(apply(noisy(reference, noise, generator), symmetry, planted, like=reference)).element

        for name in ordered:
            still = torch.arange(len(planted.moves[name].perm))
            back = found.moves[name].perm if name in found.moves else None
            assert torch.equal(planted.moves[name].perm[still if back is None else back], still), (seed, name)
