"""Weights from files: heads may differ, everything else must fit, and nothing is guessed."""

import logging
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from popmi_core.checkpoints import load_state, save_state
from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import build_model, exchanged_state, weights

MICRO = ModelConfig(backbone="popmi_vit_micro", image_size=32)


def saved(tmp_path, model, **changes):
    path = tmp_path / "model.safetensors"
    save_state(path, {**model.state_dict(), **changes})
    return path


def from_file(path, config=MICRO, classes=7, seed=1):
    return build_model(config.model_copy(update={"weights": str(path)}), classes, seed=seed)


def test_a_saved_model_comes_back_whole(tmp_path):
    model = build_model(MICRO, 7, seed=0)
    loaded = from_file(saved(tmp_path, model)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_head_of_other_classes_starts_fresh_and_says_so(tmp_path, caplog):
    model = build_model(MICRO, 10, seed=0)
    with caplog.at_level(logging.INFO):
        loaded = from_file(saved(tmp_path, model)).state_dict()
    fresh = build_model(MICRO, 7, seed=1).state_dict()
    assert "head.bias, head.weight" in caplog.text
    assert torch.equal(loaded["head.weight"], fresh["head.weight"])
    assert torch.equal(loaded["blocks.1.mlp.fc1.weight"], model.state_dict()["blocks.1.mlp.fc1.weight"])


def test_what_travels_is_enough_to_load_a_model_with_counters(tmp_path):
    config = ModelConfig(backbone="test_resnet", image_size=32)
    path = tmp_path / "round.safetensors"
    model = build_model(config, 7, seed=0)
    save_state(path, exchanged_state(model))
    loaded = exchanged_state(from_file(path, config))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in exchanged_state(model).items())


@pytest.mark.parametrize("block", [0, 1])
def test_a_file_of_a_model_with_prea_is_loaded_with_prea(tmp_path, block):
    config = MICRO.model_copy(update={"adapter": AdapterConfig(group="D4", merge_block=block)})
    model = build_model(config, 7, seed=0)
    torch.nn.init.ones_(model.prea.up.weight)
    loaded = from_file(saved(tmp_path, model), config).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_position_table_of_another_image_size_is_resampled(tmp_path):
    path = saved(tmp_path, build_model(MICRO, 7, seed=0))
    larger = from_file(path, MICRO.model_copy(update={"image_size": 48}))
    assert larger.state_dict()["pos_embed"].shape == (1, 36, 32)


def test_misfits_are_named(tmp_path):
    model = build_model(MICRO, 7, seed=0)
    path = saved(tmp_path, model, **{"norm.weight": torch.ones(5), "extra": torch.ones(1)})
    with pytest.raises(ModelError, match=r"'extra' is unknown; 'norm.weight' has shape \(5,\), expected \(32,\)"):
        from_file(path)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "pos_embed"}
    save_state(path, tensors)
    with pytest.raises(ModelError, match="'pos_embed' is missing"):
        from_file(path)
    with pytest.raises(ModelError, match=r"and [0-9]+ more"):
        from_file(path, ModelConfig(backbone="test_resnet", image_size=32))


def test_presets_have_nothing_published():
    with pytest.raises(ModelError, match="popmi_vit_micro has no published weights"):
        from_file("pretrained")


def test_without_a_network_the_remedy_is_named(monkeypatch):
    def offline(*_args):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(weights, "hf_hub_download", offline)
    with pytest.raises(ModelError, match=r"test_vit: published weights could not be fetched .*copy the model's"):
        from_file("pretrained", ModelConfig(backbone="test_vit", image_size=32))


def test_published_weights_are_the_safetensors_file(monkeypatch, tmp_path):
    config = ModelConfig(backbone="test_vit", image_size=32)
    path = saved(tmp_path, build_model(config, 1000, seed=3))
    asked = []
    monkeypatch.setattr(weights, "hf_hub_download", lambda repo, file: asked.append((repo, file)) or str(path))
    loaded = from_file("pretrained", config)
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert torch.equal(loaded.state_dict()["pos_embed"], load_state(path)[0]["pos_embed"])


def test_imagenet_weights_of_the_shared_data_load():
    path = Path(os.environ.get("POPMI_DATA", "")) / "tf_efficientnet_lite0_imagenet.safetensors"
    if not path.is_file():
        pytest.skip("POPMI_DATA names no folder with tf_efficientnet_lite0_imagenet.safetensors")
    model = from_file(path, ModelConfig(backbone="tf_efficientnet_lite0", image_size=64))
    stored = load_state(path)[0]
    assert torch.equal(model.state_dict()["conv_stem.weight"], stored["conv_stem.weight"])
    assert model.state_dict()["classifier.weight"].shape == (7, 1280)
