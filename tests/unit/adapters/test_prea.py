"""PREA is exact at the start, after training and after averaging, and it changes only what it says."""

import copy

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from popmi_core.adapters import attach, detach, equivariance_error
from popmi_core.adapters.trunk import depth
from popmi_core.errors import ModelError
from popmi_core.groups import act, point_group
from popmi_core.models import build, exchanged_state, load_exchanged

CLASSES = 5
# Float32 keeps 7 digits and the sums over tokens cost two; float64 keeps 16, float noise only.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def micro(**changes):
    return timm.create_model("popmi_vit_micro", num_classes=CLASSES, **changes)


def small_swin():
    # Odd windows that do not divide the grid: the case that breaks Swin's own symmetry.
    return SwinTransformer(
        img_size=40, patch_size=4, window_size=3, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=CLASSES
    )


# name -> (backbone, image size, allowed merge blocks)
BACKBONES = {
    "vit": (micro, 32, (0, 1, 2)),
    "vit_class_token": (lambda: micro(class_token=True, global_pool="token", reg_tokens=2), 32, (0, 1, 2)),
    "vit_no_embed_class": (lambda: micro(class_token=True, no_embed_class=True, pos_embed="learn"), 32, (0, 1)),
    "vit_without_positions": (lambda: micro(pos_embed="none"), 32, (0, 1)),
    "vit_untiled": (lambda: micro(img_size=36), 36, (1, 2)),
    "swin": (small_swin, 40, (None,)),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=CLASSES), 40, (None,)),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=CLASSES), 34, (None,)),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=CLASSES), 40, (None,)),
}
CASES = [
    (name, block, group) for name, (_, _, blocks) in BACKBONES.items() for block in blocks for group in ("C4", "D4")
]


def make(name, dtype=torch.float32):
    backbone, size, _ = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = backbone().to(dtype).eval()
    return model, size


def noise(size, count=4, seed=0, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train_a_little(model, size, seed, steps=2):
    dtype = next(model.parameters()).dtype
    images, target = noise(size, 5, seed, dtype), torch.arange(5)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()
    return model.eval()


def average(models):
    states = [exchanged_state(model) for model in models]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    fused = copy.deepcopy(models[0])
    load_exchanged(fused, mean)
    return fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "block", "group"), CASES)
def test_exact_at_the_start_after_training_and_after_averaging_five_sites(name, block, group, dtype):
    backbone, size = make(name, dtype)
    images = noise(size, seed=9, dtype=dtype)
    # The premise: the plain backbone is far from symmetric, or there would be nothing to prove.
    assert equivariance_error(backbone, images, point_group(group)) > 0.1
    start = attach(backbone, group=group, merge_block=block)
    sites = [train_a_little(copy.deepcopy(start), size, seed) for seed in range(5)]
    for model in (start, sites[0], average(sites)):
        assert equivariance_error(model, images, point_group(group)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["vit", "vit_class_token", "resnet", "swin"])
def test_learned_shares_of_the_average_are_exact_too(name):
    backbone, size = make(name, torch.float64)
    model = train_a_little(attach(backbone, group="D4", weights="lambda"), size, seed=1)
    assert model.prea.score.weight.abs().max() > 0
    images = noise(size, dtype=torch.float64)
    assert equivariance_error(model, images, model.group) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("weights", ["mean", "lambda"])
def test_attaching_changes_nothing_beyond_the_merge(weights):
    backbone, size = make("resnet", torch.float64)
    images = noise(size, dtype=torch.float64)
    features = [backbone.forward_features(act(e, images)) for e in point_group("C4").elements]
    merged = sum(act(e.inverse(), f) for e, f in zip(point_group("C4").elements, features, strict=True)) / 4
    adapted = attach(backbone, group="C4", weights=weights)
    # Only the order of a sum of four differs.
    torch.testing.assert_close(adapted(images), backbone.forward_head(merged), atol=1e-12, rtol=1e-12)


def test_merging_after_the_last_block_of_average_pooling_is_equitune():
    backbone, size = make("vit", torch.float64)
    backbone.norm = torch.nn.Identity()  # linear behind the merge, so averaging features is averaging logits
    images = noise(size, dtype=torch.float64)
    logits = torch.stack([backbone(act(e, images)) for e in point_group("D4").elements]).mean(dim=0)
    torch.testing.assert_close(attach(backbone, group="D4", merge_block=2)(images), logits, atol=1e-12, rtol=1e-12)


def test_the_last_map_can_be_named_as_a_block_too():
    backbone, size = make("swin")
    images = noise(size)
    by_number, by_default = attach(backbone, group="C4", merge_block=2), attach(backbone, group="C4")
    assert torch.equal(by_number(images), by_default(images))


def test_attaching_leaves_the_original_alone():
    backbone, _ = make("vit")
    before = copy.deepcopy(backbone.state_dict())
    attach(backbone, group="C4", merge_block=0, train="adapter")
    after = backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet", "efficientnet"])
def test_by_default_names_and_shapes_are_those_of_files_before_there_were_other_adapters(name):
    backbone, _ = make(name)
    dim, merged = backbone.num_features, attach(backbone, group="C4", weights="lambda", rank=5)
    own = {f"backbone.{key}": tensor.shape for key, tensor in backbone.state_dict().items()}
    own |= {"prea.score.weight": (1, dim), "prea.down.weight": (5, dim), "prea.down.bias": (5,)}
    own |= {"prea.up.weight": (dim, 5), "prea.up.bias": (dim,)}
    assert {key: tensor.shape for key, tensor in merged.state_dict().items()} == own
    assert name == "vit" or merged.merge_block == depth(backbone)


@pytest.mark.parametrize(("layers", "block"), [(1, 1), (2, 1), (4, 1), (8, 2), (12, 3)])
def test_the_default_merge_block_is_about_a_quarter(layers, block):
    assert attach(micro(depth=layers), group="C4").merge_block == block


def test_with_a_frozen_backbone_only_adapter_and_head_move():
    backbone, size = make("resnet")
    start = attach(backbone, group="C4", weights="lambda", train="adapter")
    before = copy.deepcopy(start.state_dict())
    after = train_a_little(start, size, seed=0).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if n.startswith("prea.")} | {"backbone.fc.weight", "backbone.fc.bias"}


def test_per_sample_gradients_by_vmap_equal_one_by_one():
    backbone, size = make("vit_class_token", torch.float64)
    model = attach(backbone, group="C4", weights="lambda")
    images, target = noise(size, 3, dtype=torch.float64), torch.tensor([0, 1, 2])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values, image, label):
        logits = torch.func.functional_call(model, values, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, target)
    for index in range(3):
        alone = torch.func.grad(loss)(parameters, images[index], target[index])
        for name, value in alone.items():
            # Batched kernels sum in another order.
            torch.testing.assert_close(together[name][index], value, atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("block", [0, 1])
def test_a_deep_copy_is_independent(block):
    model = attach(make("vit")[0], group="C4", merge_block=block)
    images = noise(32)
    before = model(images)
    train_a_little(copy.deepcopy(model), 32, seed=0)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", ["vit", "vit_class_token", "vit_without_positions"])
def test_detaching_at_block_zero_gives_an_ordinary_backbone_with_the_same_function(name):
    backbone, size = make(name, torch.float64)
    model = train_a_little(attach(backbone, group="D4", merge_block=0), size, seed=0)
    torch.nn.init.zeros_(model.prea.up.weight)
    torch.nn.init.zeros_(model.prea.up.bias)
    plain = detach(model)
    images = noise(size, dtype=torch.float64)
    assert type(plain) is type(backbone)
    assert list(plain.state_dict()) == list(backbone.state_dict())
    torch.testing.assert_close(plain(images), model(images), atol=1e-12, rtol=1e-12)


def test_detaching_gives_the_backbone_back_trainable():
    backbone, _ = make("resnet")
    plain = detach(attach(backbone, group="C4", train="adapter"))
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), backbone.state_dict().values(), strict=True)
    )


def test_impossible_wishes_are_refused():
    vit, resnet = make("vit")[0], make("resnet")[0]
    with pytest.raises(ModelError, match="has 2 blocks, merge_block is 3"):
        attach(vit, group="C4", merge_block=3)
    with pytest.raises(ModelError, match="has 4 blocks, merge_block is 5"):
        attach(resnet, group="C4", merge_block=5)
    relative = timm.create_model("vit_relpos_small_patch16_224", img_size=32, num_classes=CLASSES, depth=2)
    with pytest.raises(ModelError, match=r"cannot merge at block 1: it is not known where .* set it to 2"):
        attach(relative, group="C4", merge_block=1)
    with pytest.raises(ModelError, match=r"adapters 'lifted': 'lifted' is no adapter, expected 'none', or some of"):
        attach(vit, group="C4", adapters="lifted")
    with pytest.raises(ModelError, match="ResNet has no attention after merge_block 4 for low-rank adapters"):
        attach(resnet, group="C4", adapters="lora")
    with pytest.raises(ModelError, match="there is nothing to weight"):
        attach(vit, group="C4", merge_block=0, weights="lambda")
    with pytest.raises(ModelError, match="group 'C8' is not exact"):
        attach(vit, group="C8")
    with pytest.raises(ModelError, match=r"8 pixels do not tile 36x36"):
        attach(make("vit_untiled")[0], group="C4", merge_block=0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"weights": "lamda"}, "weights 'lamda' is not known, expected one of mean, lambda"),
        ({"train": "adapters"}, "train 'adapters' is not known, expected one of all, adapter"),
        ({"merge_block": -1}, "has 2 blocks, merge_block is -1. Choose 0 to 2"),
    ],
)
def test_misspelt_wishes_are_refused(wrong, told):
    with pytest.raises(ModelError, match=told):
        attach(make("vit")[0], group="C4", **wrong)


def test_what_is_no_plain_timm_backbone_is_refused():
    with pytest.raises(ModelError, match="Prea has PREA inside already"):
        attach(attach(make("vit")[0], group="C4"), group="C4")
    with pytest.raises(ModelError, match=r"Sequential has no num_features, forward_features, .*timm backbone"):
        attach(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), group="C4")
    oblong = micro(patch_size=(4, 16), img_size=64)
    with pytest.raises(ModelError, match="patches of 4x16 pixels, expected square ones"):
        attach(oblong, group="C4", merge_block=1)
    with pytest.raises(ModelError, match="drops patches in training, others in every copy"):
        attach(micro(patch_drop_rate=0.75), group="C4")
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, depth=2, num_classes=CLASSES)
    with pytest.raises(ModelError, match="cannot merge at block 0: its patches come from a network of their own"):
        attach(hybrid, group="C4", merge_block=0)
    assert attach(hybrid, group="C4", merge_block=1).merge_block == 1


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ModelError, match="images are 32x48 pixels, expected square"):
        attach(make("resnet")[0], group="C4")(torch.zeros(1, 3, 32, 48))


class Flat(torch.nn.Module):
    num_features = 3

    def forward_features(self, images):
        return images.mean(dim=(2, 3))

    def forward_head(self, features):
        return features

    def get_classifier(self):
        return torch.nn.Identity()


class Placed(Flat):
    """A network of no known family whose head weighs places."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, CLASSES)

    def forward_features(self, images):
        return images

    def forward_head(self, features):
        return self.head(features.mean(dim=(1, 2)))


def test_a_head_that_knows_places_is_refused_in_a_family_that_no_rule_knows():
    with pytest.raises(ModelError, match=r"Placed: logits move by .* Its head depends on places"):
        attach(Placed(), group="C4", image_size=8)
    assert attach(Placed(), group="C4", image_size=8, allow_approximate=True).merge_block == 1


def test_features_that_are_no_map_are_refused():
    backbone = Flat()
    backbone.weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ModelError, match=r"features of shape \(8, 3\), expected a square map"):
        attach(backbone, group="C4")(torch.zeros(2, 3, 4, 4))


def test_the_check_at_building_time_uses_the_exact_threshold(monkeypatch):
    # Break the merge on purpose: the proof must notice, or it proves nothing.
    from popmi_core.adapters.merge import OrbitMerge
    from popmi_core.config import AdapterConfig, ModelConfig

    monkeypatch.setattr(build, "_PROVEN", set())
    monkeypatch.setattr(OrbitMerge, "rotate", lambda self, images: torch.cat([images] * len(self.group)))
    config = ModelConfig(backbone="popmi_vit_micro", image_size=32, adapter=AdapterConfig(group="C4"))
    with pytest.raises(ModelError, match=r"logits move by .* of their spread under C4"):
        build.build_model(config, CLASSES, seed=0)
