"""Models with regular fields from their description: what travels between sites, and what they cannot have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from popmi_core.adapters import Prea
from popmi_core.config import LoraConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import build_model, exchanged_state, load_exchanged


def config(name: str = "popmi_vit_micro", size: int = 32, **more: Any) -> ModelConfig:
    adapter = {"group": "C4", "fields": "regular", **more.pop("adapter", {})}
    return ModelConfig.model_validate({"backbone": name, "image_size": size, "adapter": adapter, **more})


@pytest.mark.parametrize(("name", "size"), [("popmi_vit_micro", 32), ("popmi_resnet20", 33)])
def test_a_state_of_free_numbers_put_into_another_model_makes_it_compute_the_same(name: str, size: int) -> None:
    source, target = (build_model(config(name, size), 7, seed=seed) for seed in (0, 1))
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(source(images), target(images))

    state = exchanged_state(source)
    load_exchanged(target, state)

    assert torch.equal(source(images), target(images))
    # The orbit tables stay at home, and a field's channels share what travels.
    assert not any(name.endswith(("index", "orbits")) for name in state)
    plain = build_model(ModelConfig(backbone=name, image_size=size), 7, seed=0)
    assert sum(t.numel() for t in state.values()) < 0.3 * sum(t.numel() for t in exchanged_state(plain).values())


@pytest.mark.parametrize("train", ["all", "adapter"])
def test_low_rank_adapters_between_regular_fields_are_refused(train: str) -> None:
    asked = config(lora=LoraConfig(rank=2, train=train))

    with pytest.raises(ModelError, match=r"\[model\.lora\] with adapter\.fields = 'regular': .* Leave it out, or"):
        build_model(asked, 7, seed=0)


def test_low_rank_adapters_of_prea_itself_are_refused_too() -> None:
    with pytest.raises(ModelError, match=r"adapter\.adapters = 'lora' with adapter\.fields = 'regular'"):
        build_model(config(adapter={"adapters": "lora"}), 7, seed=0)


def test_of_a_frozen_backbone_only_the_head_travels() -> None:
    model = build_model(config(adapter={"train": "adapter"}), 7, seed=0)

    assert isinstance(model, Prea)
    assert set(exchanged_state(model)) == {"backbone.head.weight", "backbone.head.bias"}
