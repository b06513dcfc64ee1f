"""What travels: everything training can change, nothing else, and only where it fits."""

import pytest
import torch

from popmi_core.config import AdapterConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import build_model, exchanged_state, load_exchanged


def build(name="popmi_vit_micro", seed=0, **adapter):
    return build_model(ModelConfig(backbone=name, image_size=32, adapter=AdapterConfig(**adapter)), 7, seed=seed)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("popmi_vit_micro", {}),
        ("popmi_vit_micro", {"group": "C4", "merge_block": 0}),
        ("popmi_vit_micro", {"group": "D4", "weights": "lambda"}),
        ("test_resnet", {"group": "C4"}),
    ],
)
def test_a_state_put_into_another_model_makes_it_compute_the_same(name, adapter):
    source, target = build(name, 0, **adapter), build(name, 1, **adapter)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(source(images), target(images))
    load_exchanged(target, exchanged_state(source))
    assert torch.equal(source(images), target(images))


def test_statistics_travel_and_counters_stay():
    names = set(exchanged_state(build("test_resnet")))
    assert any(name.endswith("running_var") for name in names)
    assert not any(name.endswith("num_batches_tracked") for name in names)


def test_of_a_frozen_backbone_only_adapter_and_head_travel():
    names = set(exchanged_state(build("test_resnet", group="C4", train="adapter")))
    expected = {"prea.down.weight", "prea.down.bias", "prea.up.weight", "prea.up.bias"}
    assert names == expected | {"backbone.fc.weight", "backbone.fc.bias"}


def test_what_travels_is_a_copy_in_a_fixed_order():
    model = build()
    state = exchanged_state(model)
    assert list(state) == list(exchanged_state(build(seed=9)))
    before = model.state_dict()["head.weight"].clone()
    state["head.weight"].zero_()
    assert torch.equal(model.state_dict()["head.weight"], before)
    assert all(not tensor.requires_grad and tensor.device.type == "cpu" for tensor in state.values())


def test_misfits_are_named_and_nothing_is_half_loaded():
    model = build()
    original = exchanged_state(model)
    changed = {name: tensor + 1 for name, tensor in original.items()}
    missing = {name: tensor for name, tensor in changed.items() if name != "head.bias"}
    with pytest.raises(ModelError, match=r"'head.bias' is missing \(1 missing, 0 unknown\)"):
        load_exchanged(model, missing)
    with pytest.raises(ModelError, match="'surprise' is unknown to this model"):
        load_exchanged(model, {**changed, "surprise": torch.ones(1)})
    with pytest.raises(ModelError, match=r"'head.bias' has shape \(3,\) and torch.float32, expected \(7,\)"):
        load_exchanged(model, {**changed, "head.bias": torch.ones(3)})
    with pytest.raises(ModelError, match=r"'head.bias' has shape \(7,\) and torch.float64"):
        load_exchanged(model, {**changed, "head.bias": torch.ones(7, dtype=torch.float64)})
    after = exchanged_state(model)
    assert all(torch.equal(original[name], after[name]) for name in original)
