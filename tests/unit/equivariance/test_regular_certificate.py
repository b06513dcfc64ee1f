"""The certificate of PREA with regular fields: proved as it is made, and not after a weight was put off."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from popmi_core.adapters import Prea, attach
from popmi_core.equivariance.certificate import certify_algebra, promise_of, residues, telescope
from popmi_core.equivariance.certificate.regularfields import unread
from popmi_core.errors import ModelError
from popmi_core.groups import point_group
from popmi_core.models import PRESETS

C4, D4 = point_group("C4"), point_group("D4")
SMALL: dict[str, dict[str, Any]] = {
    PRESETS[1]: {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {
        "img_size": 32,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "init_values": 0.1,
    },
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1), "channels": (16,) * 4, "cardinality": 2, "base_width": 64},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    "mobilenetv3_small_100": {},
}
SIZES = {"resnet18": 33, "resnext50_32x4d": 33, "mobilenetv3_small_100": 33}


def regular(name: str = PRESETS[1], group: str = "C4") -> Prea:
    """Every number away from where it starts, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        backbone = timm.create_model(name, num_classes=3, **SMALL[name])
    model = attach(backbone, group=group, fields="regular").eval()
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.05 * torch.randn(values.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("name", "group"),
    [(PRESETS[1], "C4"), (PRESETS[1], "D4"), *[(name, "D4") for name in SMALL if name not in PRESETS]],
)
def test_every_layer_is_looked_at_and_the_model_is_proved(name: str, group: str) -> None:
    model = regular(name, group)

    found = certify_algebra(model, SIZES.get(name, 32), point_group(group))

    assert found.verdict == "proved", found.why
    assert all(one.error == 0 for one in found.residues)
    # Rounding of float64 sums; a MobileNet's is larger, as its logits hardly spread.
    assert found.error64 < 1e-10
    looked_at = {one.tensor for one in found.residues}
    free = {f"backbone.{head}.bias" for head in ("head", "head_dist", "head.fc", "fc", "classifier")}
    assert {name for name, _ in model.named_parameters()} - free <= looked_at
    assert any(name.endswith("running_var") for name in looked_at) == any(
        "running" in n for n, _ in model.named_buffers()
    )


def test_a_subgroup_is_proved_and_a_larger_group_is_not() -> None:
    assert certify_algebra(regular(group="D4"), 32, C4).verdict == "proved"

    found = certify_algebra(regular(group="C4"), 32, D4)

    assert found.verdict != "proved"
    assert "made for C4, of which D4 is no part" in found.why


def dense_in_place_of(layer: Any, *, off: float, at: tuple[int, ...]) -> Any:
    """A plain layer of the same dense weight, but for one number."""
    if isinstance(layer, nn.Conv2d):
        plain: Any = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, groups=layer.groups,
            bias=layer.bias is not None,
        )  # fmt: skip
    else:
        plain = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.weight[at] += off
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


@pytest.mark.parametrize(
    ("name", "where", "at"),
    [
        (PRESETS[1], "blocks.1.mlp.fc1", (5, 3)),
        (PRESETS[1], "head", (1, 6)),
        (PRESETS[1], "patch_embed.proj", (2, 1, 0, 3)),
        ("convnext_atto", "stages.1.blocks.0.conv_dw", (3, 0, 0, 1)),
        ("resnext50_32x4d", "layer2.0.conv2", (9, 2, 0, 1)),
    ],
)
def test_a_dense_layer_in_place_is_proved_until_one_of_its_weights_is_moved(
    name: str, where: str, at: tuple[int, ...]
) -> None:
    model, size = regular(name), SIZES.get(name, 32)
    layer = model.backbone.get_submodule(where)

    model.backbone.set_submodule(where, dense_in_place_of(layer, off=0.0, at=at))
    assert certify_algebra(model, size, C4).verdict == "proved"

    model.backbone.set_submodule(where, dense_in_place_of(layer, off=0.5, at=at))
    found = certify_algebra(model, size, C4)
    assert found.verdict in ("not proved", "not equivariant")
    assert [one.tensor for one in found.residues if one.relative > 1e-6] == [f"backbone.{where}.weight"]
    assert f"'backbone.{where}.weight'" in found.why


def test_statistics_that_differ_inside_a_field_are_off() -> None:
    model = regular("resnet18")
    norm = nn.BatchNorm2d(8).eval()
    norm.running_mean[1] = 1.0
    model.backbone.bn1 = norm

    off = [one.tensor for one in residues(model, C4) if one.relative > 1e-6]

    assert off == ["backbone.bn1.running_mean"]


def test_a_convolution_whose_groups_tear_fields_apart_is_as_far_off_as_can_be() -> None:
    model = regular("resnet18")
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    model.backbone.layer1[0].conv2 = conv

    found = {one.tensor: one for one in residues(model, C4)}["backbone.layer1.0.conv2.weight"]

    assert found.error == 2 * found.size


def test_layers_of_which_the_weights_do_not_tell_all_are_not_proved() -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    strange, torn, heads = regular(), regular("resnet18"), regular()
    layer = dense_in_place_of(strange.backbone.blocks[0].mlp.fc1, off=0.0, at=(0, 0))
    layer.__class__ = Doubled
    strange.backbone.blocks[0].mlp.fc1 = layer
    torn.backbone.bn1 = nn.GroupNorm(4, 8)
    heads.backbone.blocks[0].attn.head_dim = 2

    found = certify_algebra(strange, 32, C4)

    assert found.verdict == "not proved"
    assert "'backbone.blocks.0.mlp.fc1' (Doubled) is not known between regular fields" in found.why
    assert unread(torn) == "'backbone.bn1' takes 2 channels together, which tears fields of 4 apart"
    assert unread(heads) == "'backbone.blocks.0.attn' takes 2 channels together, which tears fields of 4 apart"


def test_uneven_steps_are_not_proved_whatever_the_weights_are() -> None:
    found = certify_algebra(regular("resnet18"), 32, C4)

    assert found.verdict != "proved"
    assert found.reasons
    assert all(one.error == 0 for one in found.residues)


def test_the_sum_over_layers_is_refused_as_channels_turn_too() -> None:
    with pytest.raises(ModelError, match=r"not scalar fields .* PREA with trivial fields"):
        telescope(regular().double(), torch.zeros(1, 3, 32, 32, dtype=torch.float64), 90.0)


def test_noise_and_averages_keep_the_promise_and_the_card_counts_every_layer() -> None:
    model = regular(group="D4")
    promise = promise_of(model)
    assert promise is not None

    noisy = {name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    promise.check(noisy, "site ward, round 1")
    verdict = promise.verdict(noisy)

    assert (verdict["group"], verdict["stored"], verdict["residue"], verdict["holds"]) == (
        "D4", "free coefficients", 0.0, True,
    )  # fmt: skip
    assert verdict["constrained"] == len(residues(model, D4)) > 25
