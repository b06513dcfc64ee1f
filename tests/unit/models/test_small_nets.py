"""Study models: built like any other, of the shape their names promise, and trainable."""

import pytest
import timm
import torch
from timm.layers import GroupNorm
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from popmi_core.config import ModelConfig
from popmi_core.models import STUDY_NETS, build_model

# Counted by hand from the layers' shapes at 8 classes.
PARAMETERS = {
    "popmi_mlp": 2352 * 512 + 512 + 512 * 512 + 512 + 512 * 8 + 8,
    "popmi_vit_64": 64 * 147 + 64 + 64 + 17 * 64 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64 + 64 * 8 + 8,
    "popmi_vit_128": 128 * 147 + 128 + 128 + 17 * 128 + 3 * (12 * 128**2 + 13 * 128) + 2 * 128 + 128 * 8 + 8,
}


def build(name, seed=0, classes=8):
    return build_model(ModelConfig(backbone=name, image_size=28), classes, seed=seed)


@pytest.mark.parametrize("name", STUDY_NETS)
def test_a_study_model_is_built_from_its_name_and_repeats_with_its_seed(name):
    first, second, other = build(name, 3), build(name, 3), build(name, 4)
    assert first(torch.zeros(2, 3, 28, 28)).shape == (2, 8)
    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", STUDY_NETS)
def test_timm_knows_the_study_models_classifier_and_features(name):
    model = build(name)
    classifier = dict(model.named_modules())[model.pretrained_cfg["classifier"]]
    assert classifier is model.get_classifier()
    features = model.forward_features(torch.randn(2, 3, 28, 28))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(5)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 5)
    assert timm.create_model(name, num_classes=0)(torch.zeros(2, 3, 28, 28)).shape == (2, model.num_features)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_study_model_has_the_parameters_its_shape_gives(name):
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


def test_resnet20_has_twenty_weighted_layers_and_no_pool_after_the_stem():
    model = build("popmi_resnet20")
    assert isinstance(model, ResNet)
    on_the_way = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(on_the_way) == 20
    assert isinstance(model.maxpool, nn.Identity)
    assert model.forward_features(torch.zeros(1, 3, 28, 28)).shape == (1, 64, 4, 4)


def test_the_two_resnets_differ_in_their_norm_only():
    plain, grouped = build("popmi_resnet20"), build("popmi_resnet20_gn")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in grouped.modules())
    norms = [m for m in grouped.modules() if isinstance(m, GroupNorm)]
    assert len(norms) == len([m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)])
    assert {m.num_groups for m in norms} == {8}
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in grouped.named_parameters()}


def test_the_study_vits_are_stock_with_a_class_token():
    model = build("popmi_vit_64")
    assert type(model) is VisionTransformer
    assert {"cls_token", "blocks.2.attn.qkv.bias", "norm.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("name", STUDY_NETS)
def test_every_parameter_of_a_study_model_gets_a_gradient(name):
    model = build(name).train()
    with torch.no_grad():  # zero-initialised last norms hide their branch on the first step
        for parameter in model.parameters():
            parameter.add_(0.01)
    model(torch.randn(4, 3, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
