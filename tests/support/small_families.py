"""Every described family at a size that is matched in milliseconds, alone and below adapters, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from field_net import FieldNet
from timm import create_model
from timm.layers import GroupNorm
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.adapters import attach
from popmi_core.adapters.lora import add_lora
from popmi_core.groups import point_group
from popmi_core.matching import Symmetry, describe_model

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4),
    "num_classes": 5,
}  # fmt: skip
NARROW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16), "num_classes": 5}
BLOCKS = [["ds_r1_k3_s1_e1_c16_se0.5"], ["ir_r2_k3_s2_e2_c24_se0.5"]]
STAGES = {"depths": (1, 1, 1, 1), "dims": (12, 12, 16, 24), "num_classes": 5}
STOCK = {
    "resnet": lambda: ResNet(BasicBlock, **NARROW),
    "resnet_groupnorm": lambda: ResNet(BasicBlock, norm_layer=partial(GroupNorm, num_groups=4), **NARROW),
    "mlp": lambda: create_model("popmi_mlp", img_size=8, hidden=48, num_classes=5),
    "bottleneck": lambda: ResNet(Bottleneck, **NARROW),
    "convnext": lambda: create_model("convnext_atto", **STAGES),
    "efficientnet": lambda: EfficientNet(decode_arch_def(BLOCKS), stem_size=16, num_features=48, num_classes=5),
    "swin": lambda: SwinTransformer(**SWIN),
    "swinv2": lambda: SwinTransformerV2(**SWIN),
    "vit": lambda: VisionTransformer(**VIT),
    "deit": lambda: VisionTransformerDistilled(**VIT),
}
ADAPTED = {
    "vit_prea": lambda: attach(VisionTransformer(**VIT), group="C4", rank=6),
    "convnext_prea": lambda: attach(STOCK["convnext"](), group="C4", rank=6),
    "resnet_prea": lambda: attach(STOCK["resnet"](), group="C4", rank=6),
    "vit_lora": lambda: add_lora(VisionTransformer(**VIT), ("attn.qkv", "mlp.fc1"), rank=3),
    "swin_lora": lambda: add_lora(SwinTransformer(**SWIN), ("mlp.fc1",), rank=3),
}
EVERY = {**STOCK, **ADAPTED, "fields": lambda: FieldNet(point_group("D4"), seed=1)}
SIDE = {
    "vit": 16,
    "swin": 16,
    "swinv2": 16,
    "swin_lora": 16,
    "deit": 16,
    "vit_prea": 16,
    "vit_lora": 16,
    "mlp": 8,
    "fields": 9,
}


@dataclass(frozen=True)
class Member:
    """A model of one family, its weights, its description and a batch of images (32 pixels unless in ``SIDE``)."""

    model: nn.Module
    state: dict[str, Tensor]
    symmetry: Symmetry
    images: Tensor


def member(name: str) -> Member:
    """Return a member of the family; all weights are away from their initial values, a low-rank B's zeros too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EVERY[name]().double().eval()
        if name != "fields":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        side = SIDE.get(name, 32)
        images = torch.randn(4, 3, side, side, dtype=torch.float64)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return Member(model, state, describe_model(model, image_size=side), images)


def noisy(state: dict[str, Tensor], noise: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the state with noise of this share of every tensor's spread; statistics and counters stay."""
    return {
        name: tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator).to(tensor)
        if tensor.is_floating_point() and "running" not in name
        else tensor
        for name, tensor in state.items()
    }
