"""The geometry checker against the error of PREA itself, and against what each family is known to do."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn

from popmi_core.adapters import attach, equivariance_error
from popmi_core.adapters.geometry import REFUSED_FROM, check_all, check_geometry, stages_of
from popmi_core.adapters.geometry.measure import TOLERANCE, blobs, tail_error
from popmi_core.adapters.geometry.rules import breaks
from popmi_core.adapters.geometry.trace import Axis, Step, trace
from popmi_core.adapters.geometry.twin import tied_twin
from popmi_core.errors import ModelError
from popmi_core.groups import act, point_group
from popmi_core.models import PRESETS

C4, D4 = point_group("C4"), point_group("D4")
SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "vit": (PRESETS[1], {}, (32, 40)),
    "resnet": ("resnet10t", {"channels": (16, 16, 16, 16)}, (32, 33, 64, 65)),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, (32, 36, 64, 72)),
    "efficientnet": ("efficientnet_lite0", {}, (32, 33)),
    "efficientnet, TF padding": ("tf_efficientnet_lite0", {}, (33, 34)),
    "mobilenet": ("mobilenetv3_small_050", {}, (33, 40)),
    "swin, even windows": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, (32, 40, 48, 64)),
    "swin, odd windows": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 3}, (24, 48)),
    "swin v2": ("swinv2_tiny_window8_256", {**SWIN, "window_size": 4}, (32, 40)),
}


def make(name: str, size: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        sized = {"img_size": size} if "vit" in name or "swin" in name else {}
        return timm.create_model(name, num_classes=4, **sized, **options).eval()


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, (_, _, sizes) in FAMILIES.items() for s in sizes])
def test_the_verdict_is_exact_just_where_prea_itself_measures_no_error(family: str, size: int) -> None:
    name, options, _ = FAMILIES[family]
    backbone = opened(make(name, size, **options))
    blocks = range(0, len(stages_of(backbone)) + 1, 2)

    found = check_all(backbone, size, group="C4", merge_blocks=blocks, search=False)

    images = blobs(backbone, size, seed=1)
    for geometry in found:
        adapted = attach(backbone, group="C4", merge_block=geometry.merge_block).eval()
        error = equivariance_error(adapted, images, C4)
        # Exact models leave 1e-6 to 3e-5 in float32; the mildest break in this table is 1e-2.
        assert (geometry.verdict == "exact") == (error < TOLERANCE), (geometry, error)


def opened(backbone: nn.Module) -> nn.Module:
    """Open what starts closed (last norms at 0, layer scales at 1e-6): it hides what it would break later."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 1 and not name.endswith("bias") and float(parameter.abs().max()) < 1e-3:
                parameter.fill_(1.0)
    return backbone


@pytest.mark.parametrize(
    ("name", "size", "verdict", "least", "most"),
    [
        ("resnet18", 64, "refused", 1.5, 8.0),
        # In float64 (4e-14 seen): what rounding leaves in float32 differs from processor to processor.
        ("resnet18", 65, "exact", 0.0, 1e-12),
        ("convnext_atto", 64, "exact", 0.0, 1e-12),
        ("convnext_atto", 72, "refused", 1.0, 5.0),
    ],
)
def test_known_figures_are_met(name: str, size: int, verdict: str, least: float, most: float) -> None:
    found = check_geometry(make(name, size).double(), size, group="C4", merge_block=0)

    assert found.verdict == verdict
    assert found.error is not None
    assert least <= found.error <= most


@pytest.mark.parametrize(
    ("name", "size", "block", "nearest"),
    [("resnet18", 64, 0, 65), ("convnext_atto", 72, 0, 64), ("tf_efficientnet_lite0", 64, 3, 65)],
)
def test_the_nearest_exact_size_is_named_and_is_exact(name: str, size: int, block: int, nearest: int) -> None:
    found = check_geometry(make(name, size), size, group="C4", merge_block=block)

    assert found.nearest_exact == nearest
    assert check_geometry(make(name, nearest), nearest, group="C4", merge_block=block).verdict == "exact"


def test_a_later_merge_is_never_worse() -> None:
    order = {"exact": 0, "approximate": 1, "refused": 2}
    verdicts = [order[g.verdict] for g in check_all(make("resnet18", 64), 64, group="D4", measure=False)]

    assert verdicts == sorted(verdicts, reverse=True)
    assert verdicts[-1] == 0


def test_odd_windows_are_approximate_and_named() -> None:
    backbone = make("swin_tiny_patch4_window7_224", 48, **SWIN, window_size=3)

    found = check_geometry(backbone, 48, group="C4", merge_block=0)

    assert found.verdict == "approximate"
    assert found.error is not None
    assert TOLERANCE < found.error < REFUSED_FROM
    assert "layers.0.blocks.1: windows of 3 cells shifted by 1 lie elsewhere" in str(found.reasons[0])


def test_a_rotary_position_is_told_and_only_the_last_map_can_be_merged() -> None:
    backbone = timm.create_model(
        "eva02_tiny_patch14_224", img_size=42, embed_dim=32, depth=2, num_heads=2, num_classes=3
    )

    first, _, last = check_all(backbone, 42, group="C4")

    assert first.verdict == "refused"
    assert first.nearest_exact is None
    assert "it is not known where places enter it" in first.reasons[0].what
    assert "rotary positions" in first.reasons[1].what
    assert last.verdict == "exact"


@pytest.mark.parametrize("block", [0, 1])
def test_what_the_checker_calls_possible_can_be_attached_and_the_rest_not(block) -> None:
    for name, options in (("beit_base_patch16_224", {"embed_dim": 24, "num_heads": 2}), ("vit_tiny_patch16_224", {})):
        backbone = timm.create_model(name, img_size=32, patch_size=8, depth=2, num_classes=3, **options)
        verdict = check_geometry(backbone, 32, group="C4", merge_block=block).verdict
        try:
            attach(backbone, group="C4", merge_block=block, image_size=32)
        except ModelError:
            assert verdict == "refused"
        else:
            assert verdict == "exact"


def test_oblong_patches_are_refused() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=(4, 16), depth=2, num_classes=3)

    found = check_geometry(backbone, 64, group="C4", merge_block=1)

    assert found.verdict == "refused"
    assert "patches of 4x16 pixels" in found.reasons[0].what


class Flattened(nn.Module):
    """A network whose second stage mixes places through a dense layer: no rule knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Shuffler(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(images).mean(dim=(2, 3)))


class Shuffler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 64)

    def forward(self, maps: Tensor) -> Tensor:
        return self.mix(maps.flatten(2)).view_as(maps)


def test_an_unknown_layer_that_keeps_places_is_named_by_measuring() -> None:
    torch.manual_seed(0)

    found = check_geometry(Flattened(), 8, group="C4", merge_block=1)

    assert found.verdict in ("approximate", "refused")
    assert found.reasons[0].module == "stages.1"
    assert "Shuffler" in found.reasons[0].what
    assert found.nearest_exact is None


def test_the_layer_after_the_merge_is_what_counts() -> None:
    torch.manual_seed(0)

    assert check_geometry(Flattened(), 8, group="C4", merge_block=2).verdict == "exact"


def test_without_measuring_an_uneven_geometry_is_called_approximate_and_nothing_is_run() -> None:
    found = check_geometry(make("resnet10t", 64), 64, group="C4", merge_block=0, measure=False)

    assert (found.verdict, found.error) == ("approximate", None)


def test_a_size_that_does_not_run_is_refused_with_the_reason_and_a_size_that_does() -> None:
    found = check_geometry(make(PRESETS[1], 32), 34, group="C4", merge_block=0)

    assert found.verdict == "refused"
    assert found.nearest_exact == 32


@pytest.mark.parametrize("block", [-1, 3])
def test_a_block_that_does_not_exist_is_refused(block: int) -> None:
    found = check_geometry(make(PRESETS[1], 32), 32, group="C4", merge_block=block)

    assert found.verdict == "refused"
    assert "expected 0 to 2" in found.reasons[0].what


def test_a_model_without_blocks_is_told() -> None:
    with pytest.raises(ModelError, match="neither blocks nor stages"):
        check_all(nn.Linear(2, 2), 8, group="C4")


def test_a_family_that_is_not_divided_merges_on_its_last_map() -> None:
    first, last = check_all(make("regnetx_002", 64), 64, group="C4", measure=False)

    assert first.verdict == "refused"
    assert last.verdict == "exact"


@pytest.mark.parametrize("size", range(7, 16))
@pytest.mark.parametrize("layer", ["convolution", "strided", "dilated", "maximum", "average", "ceil", "blur"])
def test_the_rule_is_the_numerical_truth_for_single_layers(layer: str, size: int) -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "convolution": nn.Conv2d(1, 1, 4, padding=1),
        "strided": nn.Conv2d(1, 1, 3, stride=2, padding=1),
        "dilated": nn.Conv2d(1, 1, 3, stride=3, dilation=2, padding=1),
        "maximum": nn.MaxPool2d(3, stride=2, padding=1),
        "average": nn.AvgPool2d(2),
        "ceil": nn.MaxPool2d(2, ceil_mode=True),
        "blur": BlurPool2d(1),
    }
    chain: Any = nn.Module()
    chain.layers = nn.Sequential(layers[layer])
    chain.weight = nn.Parameter(torch.zeros(1))
    chain.in_chans = 1
    chain.forward = lambda images: chain.layers(images)
    steps = trace(chain, size).steps
    assert steps

    twin = tied_twin(chain, size, D4)
    images = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(1))
    upright = twin.layers(images)
    moved = max(float((twin.layers(act(g, images)) - act(g, upright)).abs().max()) for g in D4.elements)

    # A sum of at most 16 products in float32, of numbers around one.
    assert (not breaks(steps, D4)) == (moved < 1e-5)


def test_the_middle_of_what_is_sampled_is_found() -> None:
    assert Axis(64, 32, reach=3, stride=2, before=1, after=1).off_centre == -0.5
    assert Axis(65, 33, reach=3, stride=2, before=1, after=1).off_centre == 0
    assert Axis(64, 65, before=0, after=1).off_centre == 0.5


def test_oblong_kernels_are_refused_under_turns_and_allowed_under_mirrors() -> None:
    step = Step("conv", "convolution", Axis(9, 9, 3, 1, 1, 1), Axis(9, 9, 1, 1))

    assert "3 x 1 cells is another one after a quarter turn" in breaks([step], C4)[0].what
    assert not breaks([step], point_group("D1"))


def test_closed_branches_are_opened_before_measuring() -> None:
    backbone = make("convnext_atto", 32, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))

    twin = tied_twin(backbone, 32, C4)

    gammas = [value for name, value in twin.named_parameters() if name.endswith("gamma")]
    assert gammas
    assert all(float(value.abs().min()) > 0.5 for value in gammas)
    assert all(float(v.abs().max()) < 1e-3 for n, v in backbone.named_parameters() if n.endswith("gamma"))


def test_the_error_of_the_tail_is_zero_for_the_trivial_group() -> None:
    backbone = make(PRESETS[1], 32)

    assert tail_error(backbone, blobs(backbone, 32), point_group("C1"), 0) == 0.0
