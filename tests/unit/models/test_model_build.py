"""A model from its description: which sizes fit, what is refused, and that a seed means the same bits."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from popmi_core.adapters import Prea
from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import PRESETS, build, build_model

# One small member of every family; (name, image size, patch size).
FAMILIES = [
    ("popmi_vit_micro", 32, None),
    ("popmi_vit_micro", 24, 4),
    ("test_vit", 48, 8),
    ("test_convnext", 40, None),
    ("test_convnext", 64, 2),
    ("test_resnet", 33, None),
    ("test_efficientnet", 64, None),
    ("swin_tiny_patch4_window7_224", 64, 4),
]


@pytest.mark.parametrize(("name", "image_size", "patch_size"), FAMILIES)
def test_every_family_runs_at_small_sizes(name, image_size, patch_size):
    model = build_model(ModelConfig(backbone=name, image_size=image_size, patch_size=patch_size), 7, seed=0)
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)
    assert not model.training


@pytest.mark.parametrize("group", ["none", "C4"])
def test_a_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(group):
    config = ModelConfig(backbone="popmi_vit_micro", image_size=32, adapter=AdapterConfig(group=group))
    before = torch.get_rng_state()
    first = build_model(config, 7, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, other = build_model(config, 7, seed=5).state_dict(), build_model(config, 7, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_without_an_adapter_the_model_is_timms_own():
    model = build_model(ModelConfig(backbone="popmi_vit_nano"), 7, seed=0)
    assert type(model) is VisionTransformer
    assert "blocks.3.attn.qkv.bias" in model.state_dict()


def test_with_an_adapter_timms_names_lie_under_backbone():
    config = ModelConfig(backbone="popmi_vit_micro", image_size=32, adapter=AdapterConfig(group="C4", weights="lambda"))
    model = build_model(config, 7, seed=0)
    plain = build_model(ModelConfig(backbone="popmi_vit_micro", image_size=32), 7, seed=0)
    assert isinstance(model, Prea)
    names = {f"backbone.{name}" for name in plain.state_dict()}
    adapter = {"prea.down.weight", "prea.down.bias", "prea.up.weight", "prea.up.bias", "prea.score.weight"}
    assert set(model.state_dict()) == names | adapter


@pytest.mark.parametrize(
    ("name", "low", "high"), [("popmi_vit_nano", 400_000, 550_000), ("popmi_vit_micro", 25_000, 40_000)]
)
def test_presets_have_the_size_they_promise(name, low, high):
    assert name in PRESETS
    model = build_model(ModelConfig(backbone=name, image_size=64 if name == "popmi_vit_nano" else 32), 7, seed=0)
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_an_unknown_backbone_names_its_neighbours():
    with pytest.raises(ModelError, match=r"'popmi_vit_nao' is not known to timm .* Did you mean popmi_vit_nano"):
        build_model(ModelConfig(backbone="popmi_vit_nao"), 7, seed=0)


def test_a_model_without_classes_is_refused():
    with pytest.raises(ModelError, match="num_classes is 0, expected at least 1"):
        build_model(ModelConfig(), 0, seed=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_backbone_without_patches_refuses_a_patch_size(name):
    with pytest.raises(ModelError, match=rf"{name} does not accept patch_size \(8\)"):
        build_model(ModelConfig(backbone=name, patch_size=8), 7, seed=0)


def test_a_patch_larger_than_the_image_is_refused_with_both_numbers():
    with pytest.raises(ModelError, match="cannot run on 8x8 images"):
        build_model(ModelConfig(backbone="popmi_vit_micro", image_size=8, patch_size=16), 7, seed=0)


def test_a_size_the_constructor_refuses_is_refused_with_its_reason(monkeypatch):
    def refuse(*_args, **_sizes):
        raise AssertionError("window 7 does not divide 3")

    monkeypatch.setattr(build.timm, "create_model", refuse)
    with pytest.raises(ModelError, match="cannot run on 24x24 images with patch_size 8: window 7 does not divide 3"):
        build_model(ModelConfig(backbone="test_vit", image_size=24, patch_size=8), 7, seed=0)


def test_a_fault_of_the_library_is_not_taken_for_a_wrong_size(monkeypatch):
    def broken(*_args, **_sizes):
        raise TypeError("unrelated")

    monkeypatch.setattr(build.timm, "create_model", broken)
    with pytest.raises(TypeError, match="unrelated"):
        build_model(ModelConfig(backbone="test_vit"), 7, seed=0)


def test_a_head_that_knows_places_cannot_be_made_exact():
    # resnet50_clip pools with position-dependent attention: no merge before it can mend that.
    config = ModelConfig(backbone="resnet50_clip", image_size=64, adapter=AdapterConfig(group="C4"))
    with pytest.raises(ModelError, match="Its head depends on places"):
        build_model(config, 7, seed=0)


def test_a_size_that_is_not_exact_is_refused_with_the_nearest_that_is():
    config = ModelConfig(backbone="popmi_resnet20", image_size=32, adapter=AdapterConfig(group="C4", merge_block=0))
    with pytest.raises(ModelError, match=r"at 32x32 pixels, merged after block 0, is not exact under C4 .* 33 is the"):
        build_model(config, 5, seed=0)
    build_model(config.model_copy(update={"image_size": 33}), 5, seed=0)
