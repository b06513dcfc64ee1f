"""The catalogue leads from a name to a method, the builder from a method to a checked model."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import timm
import torch
from orbit_backbones import CLASSES, ORBIT_METHODS, context, noise

import popmi_core.models  # noqa: F401  (registers the small ViTs)
from popmi_core.errors import ConfigError, ModelError, PopmiError
from popmi_core.groups import image_action
from popmi_core.invariance.build import build_method
from popmi_core.invariance.catalogue import METHODS, method
from popmi_core.invariance.equizero import Equizero
from popmi_core.invariance.posthoc import PostHoc


@pytest.mark.parametrize("name", METHODS)
def test_every_name_leads_to_a_method_that_says_what_it_is(name):
    entry = method(name)
    assert entry.name == name
    assert all((entry.guarantee, entry.cost, entry.source, entry.caveat))


def test_no_module_has_a_method_that_is_not_listed():
    listed = {(name, module) for name, module in METHODS.items()}
    found = {(entry.name, module) for module in METHODS.values() for entry in import_module(module).ENTRIES}
    assert found == listed


def test_a_wrong_name_is_met_with_near_ones():
    with pytest.raises(ConfigError, match=r"'equitune' is not in the catalogue. Did you mean .*equitune"):
        method("equitune")
    with pytest.raises(ConfigError, match=r"Choose one of equitune-features, "):
        method("§")


def test_the_catalogue_loads_no_method_before_it_is_asked_for():
    code = (
        "import sys, popmi_core.invariance.catalogue as c;"
        "print(sorted({'timm', 'escnn', 'popmi_core.invariance.posthoc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_the_same_context_gives_the_same_model_and_leaves_the_global_generator(name):
    before = torch.random.get_rng_state()
    first, second = build_method(name, context()), build_method(name, context())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.training is False
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    other = build_method(name, context(seed=1))
    assert any(not torch.equal(tensor, other.state_dict()[key]) for key, tensor in first.state_dict().items())


@pytest.mark.parametrize("name", ["equitune-logits", "posthoc-attention"])
def test_building_leaves_the_generators_of_accelerators(name, monkeypatch):
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(0)
    assert seeded == [0]
    build_method(name, context())
    assert seeded == [0]


@pytest.mark.parametrize("group", ["C1", "C2", "C4", "D1", "D2", "D4", "C8", "C16"])
def test_every_group_is_built(group):
    model = build_method("equitune-features", context(group=group))
    assert model(noise()).shape == (3, CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"train": "some"}, "train is 'some', expected one of none, head, all"),
        ({"group": "D8"}, "does not act on images"),
        ({"image_size": 48}, "equitune-features does not run on 3x48x48 images"),
        ({"in_chans": 1}, "equitune-features does not run on 1x32x32 images"),
        ({"num_classes": 7}, r"gives logits of shape \(2, 5\), expected \(2, 7\)"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(PopmiError, match=message):
        build_method("equitune-features", replace(context(), **changes))


def test_a_backbone_that_is_no_timm_classifier_is_refused():
    plain = replace(context(), backbone=lambda: torch.nn.Conv2d(3, 5, 32))
    with pytest.raises(ModelError, match=r"equitune-features does not run on .*forward_features"):
        build_method("equitune-features", plain)


def test_a_backbone_with_broken_weights_is_refused():
    def broken():
        model = timm.create_model("popmi_vit_micro", num_classes=CLASSES)
        torch.nn.init.constant_(model.head.weight, float("nan"))
        return model

    with pytest.raises(ModelError, match="NaN or infinite"):
        build_method("equitune-logits", replace(context(), backbone=broken))


def test_features_without_places_cannot_be_turned_back_but_outputs_can():
    mlp = replace(context(), backbone=lambda: timm.create_model("popmi_mlp", img_size=32, num_classes=CLASSES))
    with pytest.raises(ModelError, match="expected a square map"):
        build_method("lambda-equitune", mlp)
    for name in ("equitune-logits", "equizero", "posthoc-max", "canonicalisation", "tta"):
        assert build_method(name, mlp)(noise().float()).shape == (3, CLASSES)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ModelError, match="32x40 pixels, expected square"):
        build_method("tta", context())(torch.zeros(2, 3, 32, 40, dtype=torch.float64))


def test_unknown_ways_and_proxies_are_refused():
    backbone = context().backbone()
    with pytest.raises(ConfigError, match="aggregation 'median' does not exist, expected one of mean, max"):
        PostHoc(backbone, image_action("C4"), "median")
    with pytest.raises(ConfigError, match="proxy 'loss' is no score, expected one of logit, confidence, entropy"):
        Equizero(backbone, image_action("C4"), proxy="loss")


def test_a_backbone_that_does_not_pool_is_refused_by_aggregations_of_vectors():
    def unpooled():
        return timm.create_model("popmi_vit_micro", num_classes=CLASSES, global_pool="", class_token=False)

    with pytest.raises(ModelError, match="expected one vector"):
        build_method("posthoc-mean", replace(context(), backbone=unpooled))
