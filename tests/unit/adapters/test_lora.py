"""Low-rank adapters change nothing at first, train alone, and merge into stock weights."""

import pytest
import timm
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from popmi_core.adapters import LoraLinear, add_lora, attach, merge_lora
from popmi_core.adapters.lora import scalings
from popmi_core.errors import ModelError
from popmi_core.models import exchanged_state


@pytest.fixture
def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("popmi_vit_micro", num_classes=5).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def test_adapters_change_nothing_at_first(backbone, images):
    adapted = add_lora(backbone, rank=2)

    assert torch.equal(adapted(images), backbone(images))
    assert not any(isinstance(module, LoraLinear) for module in backbone.modules())


def test_base_weights_keep_timms_names(backbone):
    added = set(add_lora(backbone, rank=2).state_dict()) - set(backbone.state_dict())

    assert set(backbone.state_dict()) <= set(add_lora(backbone, rank=2).state_dict())
    assert {name.rpartition(".lora_")[2] for name in added} == {"A.weight", "B.weight"}


def test_the_layer_computes_what_the_paper_says():
    base = nn.Linear(6, 4).double()
    layer = LoraLinear(base, 2, alpha=5, generator=torch.Generator().manual_seed(0))
    trained(nn.Sequential(layer)).requires_grad_(False)
    nn.init.ones_(layer.lora_B.weight)
    inputs = torch.randn(3, 6, dtype=torch.float64)

    expected = base(inputs) + 5 / 2 * inputs @ layer.lora_A.weight.T @ layer.lora_B.weight.T

    # Two orders of the same float64 sums.
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-12, atol=1e-12)


def test_merging_gives_a_stock_model_that_computes_the_same(backbone, images):
    adapted = trained(add_lora(backbone, ("attn.qkv", "mlp.fc2"), rank=2, alpha=3))

    merged = merge_lora(adapted)
    backbone.load_state_dict(merged.state_dict(), strict=True)

    # Two orders of the same float64 sums.
    torch.testing.assert_close(backbone(images), adapted(images), rtol=1e-11, atol=1e-11)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_only_adapters_and_the_head_travel(backbone):
    travelling = set(exchanged_state(add_lora(backbone, rank=2)))

    assert {name for name in travelling if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert set(exchanged_state(add_lora(backbone, rank=2, train="all"))) > travelling


def test_prea_stays_trainable_beside_low_rank_adapters(backbone):
    travelling = set(exchanged_state(add_lora(attach(backbone, group="C4"), rank=2)))

    assert {"prea.down.weight", "prea.up.weight", "backbone.head.weight"} <= travelling
    assert not any(name.endswith("fc1.weight") for name in travelling)


def test_two_seeds_start_from_different_factors(backbone):
    first, same, other = (add_lora(backbone, rank=2, seed=seed).blocks[0].attn.qkv.lora_A.weight for seed in (0, 0, 1))

    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_scalings_are_told_by_layer(backbone):
    found = scalings(add_lora(backbone, ("mlp.fc1",), rank=4, alpha=2))

    assert set(found.values()) == {0.5}
    assert all(name.endswith("mlp.fc1") for name in found)


def test_swin_v2_which_reads_the_weight_itself_is_told_to_call_the_layer():
    model = (
        SwinTransformerV2(
            img_size=16, patch_size=4, window_size=2, embed_dim=8, depths=(1,), num_heads=(2,), num_classes=3
        )
        .double()
        .eval()
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    adapted = add_lora(model, ("attn.qkv",), rank=2)

    # One fused sum or two: float64 rounding.
    torch.testing.assert_close(adapted(images), model(images), rtol=1e-12, atol=1e-12)
    for parameter in model.parameters():
        # Fresh gammas of zero hide the attention.
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    adapted = add_lora(model, ("attn.qkv",), rank=2)
    assert not torch.equal(trained(adapted)(images), model(images))


def test_a_name_that_no_layer_has_is_refused(backbone):
    with pytest.raises(ModelError, match=r"has no layer that ends in attn\.query"):
        add_lora(backbone, ("attn.query",))


def test_a_layer_that_is_not_linear_is_refused(backbone):
    with pytest.raises(
        ModelError, match=r"'patch_embed\.proj' is a torch\.nn\.modules\.conv\.Conv2d, expected torch\.nn\.Linear"
    ):
        add_lora(backbone, ("patch_embed.proj",))


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ModelError, match=rf"a layer of 6 -> 4 takes no adapter of rank {rank}\. Choose 1 to 4"):
        LoraLinear(nn.Linear(6, 4), rank)
