"""The octic transformer is exactly D4-invariant at every moment of its life, and a timm model like others."""

import copy

import pytest
import timm
import torch
from small_sites import averaged
from timm.layers import set_fused_attn, use_fused_attn

from popmi_core.adapters import equivariance_error
from popmi_core.config import ModelConfig
from popmi_core.errors import ModelError
from popmi_core.groups import act, grid_permutation, point_group
from popmi_core.groups.octic import D4, act_on_slabs
from popmi_core.models import OcticVit, build_model
from popmi_core.models.octic.layers import OcticLinear, OcticMlp

CLASSES = 5
# Float32 keeps 7 digits and the sums over tokens cost two; float64 keeps 16, float noise only.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
SIZES = {"popmi_octic_vit_nano": 64, "popmi_octic_vit_micro": 32, "popmi_octic_vit_28": 28}
# Products of float64 numbers summed in another order.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def make(name="popmi_octic_vit_micro", dtype=torch.float32, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=CLASSES, **changes).to(dtype).eval()


def noise(side, count=4, seed=0, dtype=torch.float32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train_a_little(model, side, seed, steps=2):
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(noise(side, CLASSES, seed, dtype))
        torch.nn.functional.cross_entropy(logits, torch.arange(CLASSES)).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SIZES)
def test_exact_at_the_start_after_training_and_after_averaging_five_sites(name, dtype):
    start, side = make(name, dtype), SIZES[name]
    images = noise(side, seed=9, dtype=dtype)
    # The premise: the plain twin is far from symmetric, or there would be nothing to prove.
    plain = make({"popmi_octic_vit_28": "popmi_vit_128"}.get(name, name.replace("octic_", "")), dtype)
    assert equivariance_error(plain, images, D4) > 0.1
    sites = [train_a_little(copy.deepcopy(start), side, seed) for seed in range(5)]
    for model in (start, sites[0], averaged(sites)):
        assert equivariance_error(model, images, D4) <= TOLERANCE[dtype]


@pytest.mark.parametrize("changes", [{}, {"class_token": True}, {"class_token": True, "global_pool": "token"}])
@pytest.mark.parametrize("element", D4.elements[1:], ids=str)
def test_tokens_turn_with_the_image_and_their_fields_with_them(element, changes):
    model, images = train_a_little(make(dtype=torch.float64, **changes), 32, seed=1), noise(32, dtype=torch.float64)
    features, extra = model.forward_features(images), model.num_prefix_tokens
    order = torch.cat([torch.arange(extra), grid_permutation(element, 4) + extra])
    moved = act_on_slabs(element, features[:, order])
    torch.testing.assert_close(model.forward_features(act(element, images)), moved, **CLOSE)
    assert not torch.allclose(features, moved, atol=0.1)


def dense(layer):
    """Return the dense weight [out, in] that a layer of blocks stands for."""
    lines = [layer.get_parameter(name).detach() for name in ("a1", "a2", "b1", "b2")]
    return torch.block_diag(*lines, layer.e.detach(), layer.e.detach())


def test_a_linear_layer_is_its_blocks_and_a_bias_on_the_invariant_part():
    layer = OcticLinear(16, 24).double()
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = features @ dense(layer).T
    expected[..., :3] += layer.bias.detach()
    torch.testing.assert_close(layer(features), expected, **CLOSE)
    # 3/16 of a dense layer's multiplications, 1/8 of its numbers.
    assert sum(layer.get_parameter(name).numel() for name in ("a1", "a2", "b1", "b2", "e")) == 24 * 16 // 8


def test_every_equivariant_matrix_is_one_that_the_layer_can_be():
    # The average of g^-1 M g over the group is the projection on all equivariant matrices; its rank is theirs.
    layer = OcticLinear(8, 8).double()
    eye = torch.eye(8, dtype=torch.float64)
    projection = torch.zeros(64, 64, dtype=torch.float64)
    for element in D4.elements:
        moved = act_on_slabs(element, eye).T
        projection += torch.kron(moved, moved) / 8
    free = sum(layer.get_parameter(name).numel() for name in ("a1", "a2", "b1", "b2", "e"))
    assert int(torch.linalg.matrix_rank(projection)) == free == 8
    torch.testing.assert_close(projection @ dense(layer).flatten(), dense(layer).flatten(), **CLOSE)


def test_the_mlp_is_gelu_on_group_elements_between_dense_layers():
    from popmi_core.groups.octic import change_of_basis

    mlp = OcticMlp(16, 32).double()
    features = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = change_of_basis().T @ mlp.fc1(features).unflatten(-1, (8, 4))
    back = (change_of_basis() @ torch.nn.functional.gelu(hidden)).flatten(-2)
    torch.testing.assert_close(mlp(features), mlp.fc2(back), **CLOSE)


def test_plain_products_are_the_same_attention_as_the_fused_kernel():
    # 289 tokens: a CPU takes the fused kernel only for many.
    model, images = make(img_size=136, dtype=torch.float64), noise(136, 2, dtype=torch.float64)
    fused, before = model(images), use_fused_attn()
    try:
        set_fused_attn(False)
        torch.testing.assert_close(model(images), fused, **CLOSE)
        # Forward-mode derivatives, which the fused kernel lacks, exist.
        slope = torch.func.jvp(model, (images,), (torch.ones_like(images),))[1]
        assert bool(torch.isfinite(slope).all())
    finally:
        set_fused_attn(bool(before))


def test_features_lie_in_memory_by_channel_whatever_the_pooling():
    for changes in ({}, {"class_token": True, "global_pool": "token"}):
        features = make(**changes).forward_features(noise(32))
        assert features.movedim(-1, 0).is_contiguous()


def test_layers_take_tokens_that_lie_row_by_row_too():
    block = make(dtype=torch.float64).blocks[0]
    rows = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = rows.movedim(-1, 0).contiguous().movedim(0, -1)
    assert rows.is_contiguous()
    assert not columns.is_contiguous()
    torch.testing.assert_close(block(rows), block(columns), **CLOSE)


def test_per_sample_gradients_by_vmap_equal_one_by_one():
    model, images, target = make(dtype=torch.float64), noise(32, 3, dtype=torch.float64), torch.tensor([0, 1, 2])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values, image, label):
        logits = torch.func.functional_call(model, values, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, target)
    for index in range(3):
        for name, value in torch.func.grad(loss)(parameters, images[index], target[index]).items():
            torch.testing.assert_close(together[name][index], value, atol=1e-12, rtol=1e-9, msg=name)


def test_it_learns():
    model, images = make(), noise(32, CLASSES)
    target = torch.arange(CLASSES)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize("name", SIZES)
def test_it_is_built_from_a_configuration_like_any_backbone(name):
    model = build_model(ModelConfig(backbone=name, image_size=SIZES[name]), CLASSES, seed=1)
    again = build_model(ModelConfig(backbone=name, image_size=SIZES[name]), CLASSES, seed=1)
    assert isinstance(model, OcticVit)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not any(name.endswith(("entries", "orders")) for name in model.state_dict())


def test_it_answers_what_timm_models_answer():
    model, images = make(), noise(32)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert pooled.shape == (4, model.num_features)
    assert model.get_classifier() is model.head
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    model.reset_classifier(7)
    assert model(images).shape == (4, 7)
    assert model.no_weight_decay() <= {"cls_token", *(name for name, _ in model.named_parameters())}


def test_it_has_an_eighth_of_the_plain_twins_numbers_in_its_blocks():
    octic, plain = make("popmi_octic_vit_nano"), make("popmi_vit_nano")
    free = sum(parameter.numel() for parameter in octic.blocks.parameters() if parameter.ndim > 1)
    weights = sum(parameter.numel() for parameter in plain.blocks.parameters() if parameter.ndim > 1)
    assert free * 8 == weights


def test_another_image_and_patch_size_may_be_asked_for():
    config = ModelConfig(backbone="popmi_octic_vit_nano", image_size=48, patch_size=6)
    model = build_model(config, CLASSES, seed=0).double()
    assert equivariance_error(model, noise(48, dtype=torch.float64), point_group("D4")) <= 1e-10


def test_impossible_shapes_are_refused():
    with pytest.raises(ModelError, match=r"patches of 8 pixels do not tile 36x36"):
        make(img_size=36)
    with pytest.raises(ModelError, match="32x48 pixels, expected square"):
        make(img_size=(32, 48))
    with pytest.raises(ModelError, match="width 36 is not whole fields"):
        make(embed_dim=36)
    with pytest.raises(ModelError, match="3 heads do not divide the 4 fields of width 32"):
        make(num_heads=3)
    with pytest.raises(ModelError, match="'token' needs class_token=True"):
        make(global_pool="token")
    with pytest.raises(ModelError, match="no gradient checkpointing"):
        make().set_grad_checkpointing()
