"""The line between two models, and what of them is read on the way."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.data import ImageSet
from popmi_core.errors import ModelError
from popmi_core.fusion.headproducts import head_products
from popmi_core.fusion.path import (
    blocks_of,
    distance,
    evaluate,
    features,
    gradient_norm,
    kernels,
    on_line,
    run,
    walk,
)
from popmi_core.models import normalise, predict

RNG = np.random.default_rng(0)
DATA = ImageSet(RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 7)


@pytest.fixture
def vit() -> nn.Module:
    return _make("popmi_vit_micro", 0)


def _make(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=7).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_ends_of_the_line_are_the_models_bit_for_bit(vit: nn.Module) -> None:
    first, second = _state(vit), _state(_make("popmi_vit_micro", 1))

    assert all(torch.equal(on_line(first, second, 0.0)[n], first[n]) for n in first)
    assert all(torch.equal(on_line(first, second, 1.0)[n], second[n]) for n in first)


def test_a_point_on_the_line_is_the_weighted_mean_and_counters_are_rounded() -> None:
    first = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([4.0, 1.0]), "n": torch.tensor(8)}

    found = on_line(first, second, 0.25)

    assert found["w"].tolist() == [1.0, 1.0]
    assert found["n"].item() == 4


def test_models_of_two_architectures_have_no_line(vit: nn.Module) -> None:
    state = _state(vit)
    with pytest.raises(ModelError, match=r"'head.bias' is in one only"):
        on_line(state, {n: t for n, t in state.items() if n != "head.bias"}, 0.5)
    with pytest.raises(ModelError, match=r"'head.bias' has shape \(7,\) in one and \(8,\)"):
        distance(state, state | {"head.bias": torch.zeros(8)})


def test_the_distance_counts_weights_and_no_counters() -> None:
    first = {"w": torch.zeros(2), "n": torch.tensor(3)}
    assert distance(first, {"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(8)}) == 5.0


def test_walking_judges_every_point_and_leaves_the_model_alone(vit: nn.Module) -> None:
    before, other = _state(vit), _state(_make("popmi_vit_micro", 1))
    seen: list[tuple[int, int]] = []

    path = walk(vit, before, other, DATA, points=5, progress=lambda done, total: seen.append((done, total)))

    assert len(path.losses) == len(path.accuracies) == 5
    assert seen == [(n, 5) for n in range(1, 6)]
    assert all(torch.equal(vit.state_dict()[n], before[n]) for n in before)
    probabilities = predict(vit, DATA.images)
    expected = -np.log(probabilities[np.arange(12), DATA.targets]).mean()
    # The logits are float32 in both; the mean is taken in float64.
    assert path.losses[0] == pytest.approx(expected, abs=1e-6)
    assert path.accuracies[0] == (probabilities.argmax(1) == DATA.targets).mean()


def test_the_gradient_norm_is_the_steepest_slope(vit: nn.Module) -> None:
    wide = vit.double()
    state = _state(wide)
    leaves = [p.requires_grad_(True) for p in wide.parameters()]
    pixels = normalise(torch.from_numpy(DATA.images), wide).double()
    loss = nn.functional.cross_entropy(wide(pixels), torch.from_numpy(DATA.targets))
    expected = torch.stack([g.square().sum() for g in torch.autograd.grad(loss, leaves)]).sum().sqrt()

    # Both are float64; the sums run in another order.
    assert gradient_norm(wide, state, DATA) == pytest.approx(float(expected), rel=1e-9)


def test_no_image_is_refused(vit: nn.Module) -> None:
    none = ImageSet.empty(32)
    with pytest.raises(ModelError, match="no image to evaluate on"):
        evaluate(vit, _state(vit), none)
    with pytest.raises(ModelError, match="no image to take a gradient on"):
        gradient_norm(vit, _state(vit), none)


def test_a_state_of_another_model_is_refused(vit: nn.Module) -> None:
    state, pixels = _state(vit), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ModelError, match=r"'head.bias' is missing"):
        run(vit, {n: t for n, t in state.items() if n != "head.bias"}, pixels)
    with pytest.raises(ModelError, match="'extra' is unknown to it"):
        run(vit, state | {"extra": torch.zeros(1)}, pixels)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("popmi_vit_micro", ("blocks.0", "blocks.1")),
        ("resnet10t", ("layer1.0", "layer2.0", "layer3.0", "layer4.0")),
        ("popmi_mlp", ("fc1", "fc2")),
    ],
)
def test_blocks_are_found_in_every_family(name: str, blocks: tuple[str, ...]) -> None:
    assert blocks_of(timm.create_model(name, num_classes=7)) == blocks


def test_kernels_are_products_of_a_blocks_outputs(vit: nn.Module) -> None:
    outputs: list[Tensor] = []
    handle = vit.get_submodule("blocks.1").register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = kernels(vit, _state(vit), DATA.images, ["blocks.1"])["blocks.1"]
    handle.remove()
    rows = outputs[0].flatten(1).double().numpy()

    # The same float32 activations, multiplied in float64.
    assert found == pytest.approx(rows @ rows.T, rel=1e-12)


def test_a_layer_that_is_not_there_is_named(vit: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"no layer 'blocks.9', expected one of blocks.0, blocks.1"):
        kernels(vit, _state(vit), DATA.images, ["blocks.9"])


def test_of_two_classifiers_the_class_tokens_is_read():
    torch.manual_seed(0)
    net = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=32, num_heads=2, num_classes=3
    )

    rows = features(net, net.state_dict(), DATA.images)

    assert rows.shape == (len(DATA), 32)
    assert blocks_of(net) == ("blocks.0",)


def test_features_are_what_the_classifier_reads(vit: nn.Module) -> None:
    rows = features(vit, _state(vit), DATA.images)
    logits = rows @ vit.head.weight.detach().double().numpy().T + vit.head.bias.detach().double().numpy()

    assert rows.shape == (12, 32)
    # The model multiplies in float32.
    assert np.exp(logits) / np.exp(logits).sum(1, keepdims=True) == pytest.approx(predict(vit, DATA.images), abs=1e-6)


def test_a_model_without_head_has_no_features_to_read() -> None:
    bare = timm.create_model("popmi_vit_micro", num_classes=0)
    with pytest.raises(ModelError, match="has no classifier"):
        features(bare, bare.state_dict(), DATA.images)


def test_head_products_are_what_attention_computes(vit: nn.Module) -> None:
    state, attention = _state(vit), vit.get_submodule("blocks.0.attn")
    found = head_products(vit, state)["blocks.0.attn"]
    tokens = torch.randn(5, 32, dtype=torch.float64)
    with_one = torch.cat([tokens, torch.ones(5, 1, dtype=torch.float64)], dim=1)
    query = state["blocks.0.attn.qkv.weight"][:16].double(), state["blocks.0.attn.qkv.bias"][:16].double()
    key = state["blocks.0.attn.qkv.weight"][32:48].double()

    scores = with_one @ found.query[0].T @ found.key[0] @ tokens.T

    assert attention.num_heads == len(found.query) == 2
    expected = (tokens @ query[0].T + query[1]) @ (tokens @ key.T).T
    # Two orders of the same float64 products.
    assert torch.allclose(scores, expected, rtol=1e-10, atol=1e-10)
    written = state["blocks.0.attn.proj.weight"][:, :16].double()
    assert torch.allclose(found.output[0].T, written)


def test_a_net_without_attention_has_no_head_products() -> None:
    net = timm.create_model("popmi_mlp", num_classes=7)
    assert head_products(net, net.state_dict()) == {}
