"""Models with low-rank adapters from their description: built alike everywhere, loaded from files, exact under PREA."""

from pathlib import Path

import pytest
import torch
from torch import nn

from popmi_core.adapters import LoraLinear, equivariance_error, merge_lora
from popmi_core.adapters.lora import scalings
from popmi_core.checkpoints import save_state
from popmi_core.config import AdapterConfig, LoraConfig, ModelConfig
from popmi_core.errors import ModelError
from popmi_core.groups import point_group
from popmi_core.models import build_model, exchanged_state

C4 = AdapterConfig(group="C4", merge_block=1)


def described(lora=None, *, adapter=None, **parts):
    return ModelConfig(
        backbone="popmi_vit_micro",
        image_size=32,
        lora=lora or LoraConfig(),
        adapter=adapter or AdapterConfig(),
        **parts,
    )


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shaken(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(folder: Path, state) -> str:
    path = folder / "model.safetensors"
    save_state(path, state)
    return str(path)


@pytest.mark.parametrize("adapter", [None, C4], ids=["alone", "beside PREA"])
def test_adapters_start_at_nothing_on_the_layers_that_are_named(adapter):
    lora = LoraConfig(rank=3, alpha=6, targets=("attn.qkv", "mlp.fc1"))
    model = build_model(described(lora, adapter=adapter), 7, seed=0)
    without = build_model(described(adapter=adapter).model_copy(update={"lora": None}), 7, seed=0)

    assert {name.rpartition("blocks.")[2] for name in scalings(model)} == {
        f"{block}.{layer}" for block in (0, 1) for layer in lora.targets
    }
    assert set(scalings(model).values()) == {2.0}
    assert torch.equal(model(images()), without(images()))
    assert not any(isinstance(module, LoraLinear) for module in without.modules())


def test_all_sites_start_from_the_same_bits():
    first, same, other = (build_model(described(), 7, seed=seed).state_dict() for seed in (5, 5, 6))

    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["blocks.0.attn.qkv.lora_A.weight"], other["blocks.0.attn.qkv.lora_A.weight"])


@pytest.mark.parametrize(
    ("lora", "adapter"),
    [("adapter", None), ("adapter", C4), ("all", C4.model_copy(update={"train": "adapter"}))],
    ids=["alone", "beside PREA", "PREA asks for it"],
)
def test_with_a_frozen_backbone_adapters_and_the_head_travel(lora, adapter):
    model = build_model(described(LoraConfig(rank=2, train=lora), adapter=adapter), 7, seed=0)

    names = {name.removeprefix("backbone.") for name in exchanged_state(model)}
    assert {"head.weight", "head.bias"} == {n for n in names if ".lora_" not in n and not n.startswith("prea.")}
    assert len([name for name in names if ".lora_" in name]) == 8
    assert any(name.startswith("prea.") for name in names) == (adapter is not None)
    # What is frozen also keeps out of training mode where PREA is there to say so.
    assert adapter is None or not model.train().backbone.training


def test_otherwise_everything_travels():
    model = build_model(described(), 7, seed=0)

    assert set(exchanged_state(model)) == set(model.state_dict())


def test_trained_adapters_leave_prea_exact():
    model = shaken(build_model(described(adapter=C4), 7, seed=0)).double()

    # Float64 rounding; a break is above 1e-3 (see exactness.py).
    assert equivariance_error(model, images(4).double(), point_group("C4")) < 1e-10


@pytest.mark.parametrize("adapter", [None, C4], ids=["alone", "beside PREA"])
def test_a_file_with_adapters_comes_back_whole(tmp_path, adapter):
    model = shaken(build_model(described(adapter=adapter), 7, seed=0))
    path = saved(tmp_path, exchanged_state(model))

    loaded = build_model(described(adapter=adapter, weights=path), 7, seed=1).state_dict()

    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("adapter", [None, C4], ids=["plain", "PREA"])
def test_a_file_without_them_starts_a_run_with_them(tmp_path, adapter):
    before = shaken(build_model(described(adapter=adapter).model_copy(update={"lora": None}), 7, seed=0))
    path = saved(tmp_path, before.state_dict())

    model = build_model(described(adapter=adapter, weights=path), 7, seed=1)

    assert torch.equal(model(images()), before(images()))
    assert len(scalings(model)) == 4


def test_a_plain_file_starts_a_run_with_both_kinds(tmp_path):
    before = shaken(build_model(described().model_copy(update={"lora": None}), 7, seed=0))

    model = build_model(described(adapter=C4, weights=saved(tmp_path, before.state_dict())), 7, seed=1)

    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, before.blocks[0].attn.qkv.weight)


def test_a_merged_file_is_a_plain_one(tmp_path):
    model = shaken(build_model(described(), 7, seed=0))
    path = saved(tmp_path, merge_lora(model).state_dict())

    plain = build_model(described(weights=path).model_copy(update={"lora": None}), 7, seed=1)

    # One product added to a weight or to an output: float32 rounding.
    torch.testing.assert_close(plain(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_a_file_that_does_not_fit_the_description_is_named(tmp_path):
    model = build_model(described(), 7, seed=0)
    path = saved(tmp_path, model.state_dict())

    with pytest.raises(ModelError, match=r"lora_A\.weight' is unknown.* Check .*adapter and lora"):
        build_model(described(weights=path).model_copy(update={"lora": None}), 7, seed=0)
    with pytest.raises(ModelError, match=r"lora_A\.weight' has shape \(8, 32\), expected \(4, 32\)"):
        build_model(described(LoraConfig(rank=4), weights=path), 7, seed=0)


def test_a_file_of_a_run_with_a_frozen_backbone_is_no_whole_model(tmp_path):
    frozen = described(LoraConfig(train="adapter"))
    path = saved(tmp_path, exchanged_state(build_model(frozen, 7, seed=0)))

    with pytest.raises(ModelError, match="holds only what a run with a frozen backbone trained"):
        build_model(frozen.model_copy(update={"weights": path}), 7, seed=0)


def test_a_backbone_without_such_layers_is_told_where_to_name_others():
    config = ModelConfig(backbone="popmi_resnet20", image_size=32, lora=LoraConfig())

    with pytest.raises(
        ModelError, match=r"no layer that ends in attn\.qkv, attn\.proj\. Name others \(lora\.targets\)"
    ):
        build_model(config, 7, seed=0)
    assert isinstance(
        build_model(config.model_copy(update={"lora": LoraConfig(rank=2, targets=("fc",))}), 7, seed=0).fc, nn.Module
    )
