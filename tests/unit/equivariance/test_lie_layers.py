"""LEE by layer: shares add up, and are what a layer's own derivative says."""

from __future__ import annotations

import pytest
import timm
import torch
from orbit_backbones import ORBIT_METHODS, shaken
from torch import nn
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach
from popmi_core.equivariance.generators import FLOWS, move_slope
from popmi_core.equivariance.lie import lie_derivatives
from popmi_core.equivariance.lie_layers import layer_terms
from popmi_core.errors import ModelError
from popmi_core.invariance import MethodContext, build_method

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NETS = {
    "popmi_vit_micro": {},
    "vit_tiny_patch16_224": VIT,
    "popmi_resnet20": {},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": SWIN,
}


def _images(side: int = 32, count: int = 2) -> torch.Tensor:
    noise = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, size=(side, side), mode="bicubic")


def _net(name: str, classes: int = 3, **arguments: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=classes, **arguments).double().eval()


def _assert_adds_up(model: nn.Module, images: torch.Tensor) -> None:
    terms, total = layer_terms(model, images), lie_derivatives(model, images)
    assert len(terms.names) == len(set(terms.names)) == len(terms.kinds)
    # Backward against forward mode: rounding of float64 only.
    assert float(abs(terms.terms.sum(axis=0) - total.moved).max()) < 1e-10 * max(1.0, float(abs(total.moved).max()))


@pytest.mark.parametrize("name", NETS)
def test_shares_sum_to_the_derivative_of_the_logits(name):
    _assert_adds_up(_net(name, **NETS[name]), _images())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "mobilenetv3_small_050", "resnext26ts"])
def test_shares_sum_to_the_derivative_in_larger_nets(name):
    _assert_adds_up(_net(name), _images(count=1))


@pytest.mark.parametrize(("name", "group", "block"), [("popmi_vit_micro", "D4", 1), ("popmi_resnet20", "C4", None)])
def test_shares_sum_to_the_derivative_where_copies_are_merged(name, group, block):
    _assert_adds_up(attach(_net(name), group=group, merge_block=block).double().eval(), _images())


@pytest.mark.parametrize(("name", "group"), [("popmi_vit_micro", "D4"), ("popmi_resnet20", "C4")])
def test_shares_sum_to_the_derivative_where_channels_turn_with_the_image(name, group):
    # A small turn moves places only: no element of the group is near, and channels stay.
    _assert_adds_up(attach(_net(name), group=group, fields="regular").double().eval(), _images())


def _rival(name: str, net: str = "popmi_vit_micro", group: str = "D4") -> nn.Module:
    def backbone() -> nn.Module:
        return _net(net, **NETS[net])

    return shaken(build_method(name, MethodContext(backbone, group, 32, 3, 3, seed=0))).eval()


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_shares_sum_to_the_derivative_in_every_method_over_an_orbit(name):
    _assert_adds_up(_rival(name), _images(count=1))


@pytest.mark.parametrize("net", ["popmi_resnet20", "swin_tiny_patch4_window7_224"])
def test_shares_sum_to_the_derivative_over_an_orbit_of_other_nets(net):
    _assert_adds_up(_rival("equitune-logits", net, "C4"), _images(count=1))


@pytest.mark.parametrize("name", [name for name in ORBIT_METHODS if name != "canonicalisation"])
def test_layers_inside_a_method_over_an_orbit_have_shares_and_making_the_copies_has_none(name):
    found = layer_terms(_rival(name), _images())
    first = next(place for place, layer in enumerate(found.names) if layer.startswith("backbone.patch_embed"))
    assert "patch embedding" in found.kinds
    assert abs(found.terms[first]).max() > 1e-3
    before = next(place for place, layer in enumerate(found.names) if layer.startswith("(before backbone"))
    # A copy moves in its own frame as the image does before it is turned.
    assert abs(found.terms[before]).max() < 1e-12
    assert abs(found.terms[found.names.index("(before the end)")]).max() < 1e-12


def test_a_layers_share_over_an_orbit_is_the_mean_of_its_shares_over_the_turned_images():
    """Of equitune on logits, which is the mean of the plain backbone; a turn by C4 leaves the rotation flow alone."""
    model, images = _rival("equitune-logits", group="C4"), _images(count=1)
    whole = layer_terms(model, images, generators=("rotation",))
    turned = [layer_terms(model.backbone, torch.rot90(images, turn, (-2, -1)), generators=("rotation",))
              for turn in range(4)]  # fmt: skip
    for place, name in enumerate(turned[0].names):
        inside = name.replace("(before ", "(before backbone.") if name.startswith("(") else f"backbone.{name}"
        inside = "(before the end of backbone)" if name == "(before the end)" else inside
        mean = sum(found.terms[place] for found in turned) / 4
        assert abs(whole.terms[whole.names.index(inside)] - mean).max() < 1e-12


def test_where_copies_are_interpolated_they_are_not_followed_and_shares_still_add_up():
    _assert_adds_up(_rival("equitune-logits", group="C8"), _images(count=1))


def test_the_share_of_a_layer_is_what_its_own_derivative_leaves():
    """The definition, by forward mode: J_h X u - X v, seen through the rest of the net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, rest = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        model = nn.Sequential(first, nn.GELU(), rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double()
    images = _images(16, 1)
    found = layer_terms(model, images)
    after = nn.Sequential(*list(model)[1:])
    for number, flow in enumerate(FLOWS):
        with torch.no_grad():
            maps, carried = torch.func.jvp(first, (images,), (move_slope(images, flow),))
            # One pixel of the image is half a pixel of the map.
            scale = 0.5 if flow.generator == "translation" else 1.0
            local = carried - scale * move_slope(maps, flow)
            _, share = torch.func.jvp(after, (maps,), (local,))
        got = torch.from_numpy(found.terms[found.names.index("0"), number])
        assert torch.allclose(got, share, atol=1e-12)


def test_layers_that_see_one_pixel_at_a_time_and_are_linear_have_no_share():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(6, 3)).double().eval()  # fmt: skip
    shares = layer_terms(model, _images(16)).shares("rotation")
    assert max(shares[name] for name in ("0", "1", "4", "5")) < 1e-12
    assert shares["2"] > 0


def test_a_vit_changes_most_in_its_patch_embedding_and_a_resnet_in_strides_and_nonlinearities():
    vit = layer_terms(_net("popmi_vit_micro"), _images()).shares("rotation", by_kind=True)
    resnet = layer_terms(_net("popmi_resnet20"), _images()).shares("rotation", by_kind=True)
    assert next(iter(vit)) == "patch embedding"
    assert resnet["downsampling"] + resnet["nonlinearity"] > 0.8


def test_activations_that_write_in_place_are_recorded_and_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)).double().eval()  # fmt: skip
    _assert_adds_up(model, _images(12))
    assert model[1].inplace
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_of_many_classes_random_combinations_estimate_the_sum():
    model = _net("popmi_vit_micro", classes=16)
    few = layer_terms(model, _images(count=1), probes=256)
    total = lie_derivatives(model, _images(count=1))
    assert not few.exact
    assert few.terms.shape[-1] == 256
    estimate = (few.terms.sum(axis=0) ** 2).mean() / few.classes
    # 256 probes: the relative deviation of the mean of squares is about sqrt(2 / 256) = 0.09.
    assert abs(estimate / (total.moved**2).mean() - 1) < 0.3


def test_shares_are_sorted_and_sum_to_one():
    found = layer_terms(_net("popmi_vit_micro"), _images(count=1))
    for by_kind in (False, True):
        shares = list(found.shares("scale", by_kind=by_kind).values())
        assert abs(sum(shares) - 1) < 1e-12
        assert shares == sorted(shares, reverse=True)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ModelError, match="expected at least one of"):
        layer_terms(_net("popmi_vit_micro"), torch.zeros(1, 3, 32, 16).double())


def test_a_model_that_goes_another_way_for_some_images_is_refused():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean(dim=(2, 3))
            return self.left(mean) if float(mean.detach().sum()) > 0 else self.right(mean)

    images = torch.stack([torch.ones(3, 8, 8), -torch.ones(3, 8, 8)])
    with pytest.raises(ModelError, match="other layers for some images"):
        layer_terms(Fork(), images)
