"""The certificate: residues of weights, telescoping sum, conformal bound, and what they say of broken models."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from field_net import FieldNet
from torch import nn

from popmi_core.adapters import attach, fold
from popmi_core.adapters.geometry.measure import blobs
from popmi_core.equivariance.certificate import (
    Promise,
    certify_algebra,
    conformal,
    group_of,
    promise_of,
    residues,
    telescope,
)
from popmi_core.equivariance.certificate.conformal import quantile, variation
from popmi_core.errors import ModelError, UpdateError
from popmi_core.groups import act, point_group
from popmi_core.models import PRESETS

C4, D4 = point_group("C4"), point_group("D4")
SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}


def make(name: str, size: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return timm.create_model(name, num_classes=4, img_size=size, **options).eval()


def vit() -> nn.Module:
    return make(PRESETS[1], 32)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_prea_is_proved_with_no_residue_and_float64_leaves_less_than_float32(block: int) -> None:
    found = certify_algebra(attach(vit(), group="D4", merge_block=block).eval(), 32, D4)

    assert found.verdict == "proved", found.why
    assert all(one.error == 0 for one in found.residues)
    # Rounding of a few hundred sums: 1e-7 and 1e-16 each.
    assert found.error64 < 1e-12 < found.error32 < 1e-4


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_window_tables_and_patch_merging_are_looked_at(name: str) -> None:
    model = attach(make(name, 32, **SWIN), group="C4", merge_block=0).eval()

    found = certify_algebra(model, 32, C4)

    assert found.verdict == "proved", found.why
    assert {one.kind for one in found.residues} == {"kernel", "window table", "patch merging"}


def test_a_model_without_adapter_is_not_equivariant_and_the_weights_are_named() -> None:
    found = certify_algebra(vit(), 32, C4)

    assert found.verdict == "not equivariant"
    assert "'pos_embed'" in found.why or "'patch_embed.proj.weight'" in found.why
    assert found.error64 > 0.1


def test_a_folded_plain_file_is_proved() -> None:
    plain = fold(attach(vit(), group="C4", merge_block=0, adapters="none")).eval()

    found = certify_algebra(plain, 32, C4)

    assert found.verdict == "proved", found.why
    assert {one.tensor for one in found.residues} == {"pos_embed", "patch_embed.proj.weight"}


def test_one_tampered_weight_of_a_folded_file_is_found() -> None:
    plain = fold(attach(vit(), group="C4", merge_block=0, adapters="none")).eval()
    with torch.no_grad():
        plain.get_parameter("patch_embed.proj.weight")[0, 0, 0, 1] += 0.1

    found = certify_algebra(plain, 32, C4)

    assert found.verdict != "proved"
    assert found.worst is not None
    assert found.worst.tensor == "patch_embed.proj.weight"


def test_a_weight_that_is_nan_ends_the_certificate() -> None:
    model = vit()
    with torch.no_grad():
        model.get_parameter("head.weight")[0, 0] = math.nan

    with pytest.raises(ModelError, match=r"'head.weight' holds NaN"):
        certify_algebra(model, 32, C4)


def test_an_answer_that_is_nan_ends_the_certificate() -> None:
    model = vit()
    with torch.no_grad():
        model.get_parameter("head.weight").fill_(3e38)

    with pytest.raises(ModelError, match="answers NaN"):
        certify_algebra(model, 32, C4)


def test_uneven_geometry_is_not_equivariant_though_all_weights_are_tied() -> None:
    backbone = timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))

    found = certify_algebra(attach(backbone, group="C4", merge_block=0).eval(), 36, C4)

    assert found.verdict == "not equivariant"
    assert all(one.error == 0 for one in found.residues)
    assert "does not fit a grid of 9 evenly" in str(found.reasons[0])


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_regular_fields_are_on_the_subspace_until_one_weight_is_moved(name: str) -> None:
    group = point_group(name)
    model = FieldNet(group, seed=0)

    assert all(one.relative < 1e-14 for one in residues(model, group))

    with torch.no_grad():
        model[2].weight[3, 2, 0, 1] += 0.5
    off = [one.tensor for one in residues(model, group) if one.relative > 1e-6]
    assert off == ["2.weight"]


def test_the_octic_transformer_promises_d4_and_keeps_it() -> None:
    model = make("popmi_octic_vit_micro", 32)

    found = certify_algebra(model, 32, D4)

    assert group_of(model) == D4
    assert found.verdict == "proved", found.why
    assert len(found.residues) > 5
    assert found.error64 < 1e-12


def test_a_stranger_is_measured_but_not_proved() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.mean(dim=(2, 3)))

    found = certify_algebra(Blind(), 8, C4)

    assert found.verdict == "not proved"
    assert "only measured" in found.why


def test_a_group_that_the_model_is_not_made_for_is_not_proved_where_no_weight_says_so() -> None:
    # What comes before the merge is symmetric but for a trace of a mirror, which rounding could have left.
    backbone = fold(attach(vit(), group="D4", merge_block=0, adapters="none"))
    with torch.no_grad():
        backbone.patch_embed.proj.weight[0, 0, 0, 1] += 1e-8
    model = attach(backbone, group="C4", merge_block=1, adapters="none").eval()

    assert certify_algebra(model, 32, C4).verdict == "proved"
    found = certify_algebra(model, 32, D4)

    assert found.verdict == "not proved"
    assert "made for C4" in found.why


def test_a_head_that_knows_places_is_not_proved_though_float32_would_hide_it() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(1e-5 * torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return (features * (0.25 + self.places)).sum(dim=(2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        backbone = timm.create_model("resnet18", num_classes=4, layers=(1, 1, 1, 1), channels=(8, 8, 12, 16))
    backbone.global_pool = Pool()
    found = certify_algebra(attach(backbone.eval(), group="C4", merge_block=0, adapters="none").eval(), 33, C4)

    assert found.verdict == "not proved"
    assert "in float64" in found.why


@pytest.mark.parametrize("angle", [90.0, 180.0, 33.0])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_terms_add_up_to_the_whole_difference(angle: float, adapted: bool) -> None:
    model = (attach(vit(), group="C4", merge_block=1) if adapted else vit()).double().eval()
    images = blobs(model, 32)

    found = telescope(model, images, angle)

    # A few sums of float64 numbers around one.
    assert found.remainder < 1e-12
    assert len(found.terms) == len(found.layers)
    assert set(found.sizes()) == set(found.layers)


def test_at_a_quarter_turn_every_term_of_an_exact_model_is_zero() -> None:
    model = attach(vit(), group="C4", merge_block=1).double().eval()

    found = telescope(model, blobs(model, 32), 90.0)

    assert max(found.sizes().values()) < 1e-12


def test_the_layer_that_breaks_the_symmetry_is_the_one_that_is_blamed() -> None:
    backbone = timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
    model = attach(backbone, group="C4", merge_block=0).double().eval()

    sizes = telescope(model, blobs(model, 36), 90.0).sizes()

    # 36 pixels are 9 cells: the second stage halves them unevenly.
    guilty = max(sizes, key=lambda name: sizes[name])
    assert guilty == "stages.1"
    assert sizes["stem (and merge)"] < 1e-12
    assert sizes["stages.0"] < 1e-12


def test_the_sum_of_a_network_of_other_fields_is_refused() -> None:
    with pytest.raises(ModelError, match="not scalar fields"):
        telescope(FieldNet(C4, seed=0), torch.zeros(1, 3, 9, 9, dtype=torch.float64), 90.0)


def test_the_sum_of_a_group_network_of_the_catalogue_is_refused_too() -> None:
    # Its channels turn with the image: turned in place only, exact layers would look broken.
    model = timm.create_model("popmi_p4_cnn", num_classes=3).double().eval()

    with pytest.raises(ModelError, match="not scalar fields"):
        telescope(model, torch.zeros(1, 3, 28, 28, dtype=torch.float64), 90.0)


def test_coverage_of_the_bound_is_what_it_promises() -> None:
    generator = np.random.default_rng(0)
    alpha, count = 0.1, 39
    covered = []
    for _ in range(4000):
        scores = generator.gamma(2.0, size=count + 1)
        covered.append(scores[-1] <= quantile(scores[:-1], alpha))

    # k = 36 of 40: exactly 0.9; the mean of 4000 trials is within 4 standard errors (0.019).
    assert abs(np.mean(covered) - 0.9) < 0.019


def test_the_quantile_is_the_rank_of_the_theorem() -> None:
    scores = np.arange(1.0, 10.0)

    assert quantile(scores, 0.1) == 9.0
    assert quantile(scores, 0.5) == 5.0
    assert quantile(scores, 0.05) == math.inf


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_impossible_level_is_refused(alpha: float) -> None:
    with pytest.raises(ModelError, match="expected 0 < alpha < 1"):
        quantile(np.ones(3), alpha)


def test_variation_is_the_largest_over_the_angles() -> None:
    logits = np.log(np.array([[[0.5, 0.5]], [[0.9, 0.1]], [[0.4, 0.6]]]))

    assert variation(logits) == pytest.approx([0.4])


def test_a_site_is_split_into_calibration_and_test() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(5, 101, 3))

    found = conformal("ward", logits, alpha=0.1, generator=np.random.default_rng(0))

    assert (found.images, found.tested, found.angles) == (51, 50, 5)
    assert found.coverage is not None
    # 50 images of coverage 0.9 or so: four standard errors are 0.17.
    assert abs(found.coverage - 0.9) < 0.17
    assert 0.7 < found.surely < 0.9


def test_too_few_images_for_the_level_bound_nothing() -> None:
    found = conformal("small", np.zeros((3, 8, 2)), alpha=0.05, generator=np.random.default_rng(0))

    assert found.bound == 1.0


def test_one_image_is_no_site() -> None:
    with pytest.raises(ModelError, match="expected at least 2"):
        conformal("one", np.zeros((3, 1, 2)), alpha=0.1, generator=np.random.default_rng(0))


def test_an_update_off_the_subspace_is_named_with_site_tensor_residue_and_tolerance() -> None:
    model = FieldNet(C4, seed=0)
    promise = promise_of(model)
    assert isinstance(promise, Promise)
    state = copy.deepcopy(model.state_dict())
    promise.check(state, "site ward, round 2")

    state["2.weight"][3, 2, 0, 1] += 0.5
    with pytest.raises(UpdateError, match=r"site ward, round 2: '2.weight' is not C4-equivariant.*at most 0.0001"):
        promise.check(state, "site ward, round 2")


def test_averaging_keeps_a_dense_promise_and_noise_does_not() -> None:
    model, other = FieldNet(C4, seed=0), FieldNet(C4, seed=1).state_dict()
    promise = promise_of(model)
    assert promise is not None

    mean = {name: (tensor + other[name]) / 2 for name, tensor in model.state_dict().items()}
    noisy = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in mean.items()}

    assert promise.verdict(mean)["holds"]
    assert not promise.verdict(noisy)["holds"]


def test_noise_on_free_coefficients_stays_on_the_subspace() -> None:
    model = attach(vit(), group="C4", merge_block=0)
    promise = promise_of(model)
    assert promise is not None

    noisy = {name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    promise.check(noisy, "site ward, round 1")

    assert promise.verdict(noisy) == {
        "group": "C4",
        "stored": "free coefficients",
        "constrained": 2,
        "residue": 0.0,
        "tensor": None,
        "tolerance": 1e-4,
        "holds": True,
    }


def test_a_model_without_group_promises_nothing() -> None:
    assert promise_of(vit()) is None


def test_the_group_acts_on_blobs_as_it_should() -> None:
    images = blobs(vit(), 32)

    assert torch.equal(act(C4.elements[1], images), torch.rot90(images, 1, (2, 3)))
