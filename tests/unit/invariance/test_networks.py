"""The equivariant networks of the literature: what each promises, at the start and after training."""

import pytest
import timm
import torch

from popmi_core.config import ModelConfig
from popmi_core.errors import ModelError
from popmi_core.groups import act, point_group
from popmi_core.invariance.catalogue import METHODS, method
from popmi_core.invariance.gcnn import GroupCnn, GroupDenseNet
from popmi_core.invariance.gevit import GroupTransformer, ModernGeVit
from popmi_core.invariance.method import MethodContext, phases_of
from popmi_core.invariance.network import square_side
from popmi_core.models import build_model

CLASSES = 3
# float64 rounding through a dozen layers stays near 1e-14 of the logits.
EXACT = 1e-10
NETWORKS = {
    "popmi_p4_cnn": ("C4", {"width": 3}),
    "popmi_p4m_cnn": ("D4", {"width": 2}),
    "popmi_p4_densenet": ("C4", {"growth": 2, "stem": 2}),
    "popmi_p4m_densenet": ("D4", {"growth": 2, "stem": 2}),
    "popmi_ge_vit_p4": ("C4", {"width": 6}),
    "popmi_ge_vit_p4m": ("D4", {"width": 6, "depths": (1, 1)}),
    "popmi_modern_ge_vit": ("C4", {"width": 6, "depth": 1}),
}


def created(name, side=28, **shape):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=side, in_chans=1, num_classes=CLASSES, **shape).double()


def side_of(name):
    return 28 if name.endswith("_cnn") else 8


def images(side, n=4):
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def worst(model, pixels, group):
    """Return the largest change of a logit under the group over the largest difference between images."""
    model.eval()
    with torch.no_grad():
        logits = model(pixels)
        turned = [model(act(element, pixels)) for element in point_group(group).elements]
    spread = (logits.amax(dim=0) - logits.amin(dim=0)).max()
    return float(max((other - logits).abs().max() for other in turned) / spread)


def train(model, pixels, steps=2):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    target = torch.arange(len(pixels)) % CLASSES
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), target).backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_turning_the_image_changes_no_logit_at_the_start_and_after_training(name):
    group, shape = NETWORKS[name]
    model, pixels = created(name, side_of(name), **shape), images(side_of(name))
    assert worst(model, pixels, group) < EXACT
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, pixels)
    assert all(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True) if old.numel() > 1
    )
    assert worst(model, pixels, group) < EXACT


@pytest.mark.parametrize("name", ["popmi_p4_cnn", "popmi_ge_vit_p4"])
def test_turns_alone_do_not_make_a_network_keep_mirrors(name):
    shape = NETWORKS[name][1]
    assert worst(created(name, side_of(name), **shape), images(side_of(name)), "D4") > 1e-2


def test_the_plain_twin_has_as_many_parameters_and_no_guarantee():
    sizes = {name: parameters(created(name)) for name in ("popmi_z2_cnn", "popmi_p4_cnn", "popmi_p4m_cnn")}
    # Published: 25 k (Z2CNN 21.75 k without its classifier layer, P4CNN 24.61 k).
    assert all(24_000 < size < 25_500 for size in sizes.values())
    assert worst(created("popmi_z2_cnn", width=4), images(28), "C4") > 1e-2


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_dense_network_has_the_published_size_in_its_published_shape():
    # Veeling et al. 2018 state 119 k for five blocks of one layer at 96 px under p4m.
    model = GroupDenseNet(96, 3, 1, group="D4", blocks=(1,) * 5, growth=6, stem=8)
    assert 90_000 < parameters(model) < 150_000


@pytest.mark.parametrize("name", [*NETWORKS, "popmi_z2_cnn", "popmi_gsa_p4"])
def test_the_networks_speak_timms_language(name):
    shape = NETWORKS.get(name, ("", {}))[1]
    model, pixels = created(name, 28, **shape).eval(), images(28, 2)
    features = model.forward_features(pixels)
    assert features.shape[:2] == (2, model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pooled), model(pixels))
    assert model.pretrained_cfg["input_size"] == (3, 28, 28)
    assert dict(model.named_modules())[model.pretrained_cfg["first_conv"]] is not None
    model.reset_classifier(0)
    torch.testing.assert_close(model(pixels), pooled)


def test_the_pooling_cannot_be_changed():
    with pytest.raises(ModelError, match="its own pooling cannot be changed"):
        created("popmi_p4_cnn").reset_classifier(2, global_pool="max")


@pytest.mark.parametrize(
    ("name", "side", "nearest"),
    [
        ("popmi_p4_cnn", 29, 30),
        ("popmi_p4_cnn", 20, 28),
        ("popmi_p4_densenet", 30, 32),
        ("popmi_ge_vit_p4", 27, 28),
        ("popmi_modern_ge_vit", 30, 32),
    ],
)
def test_a_size_that_breaks_exactness_is_refused_with_the_nearest_exact_one(name, side, nearest):
    with pytest.raises(ModelError, match=f"not exact on {side}x{side} images: .*nearest exact size is {nearest}"):
        created(name, side)
    with pytest.raises(ModelError, match=f"nearest exact size is {nearest}"):
        created(name).forward_features(images(side))
    created(name, nearest)


@pytest.mark.parametrize(("asked", "nearest"), [(1001, 1002), (10, 28), (-3, 28)])
def test_the_nearest_size_is_looked_for_around_the_one_that_was_asked_for(asked, nearest):
    with pytest.raises(ModelError, match=f"nearest exact size is {nearest}\\.$"):
        created("popmi_p4_cnn", asked)


def test_a_size_without_an_exact_one_near_it_is_refused_all_the_same():
    with pytest.raises(ModelError, match=r"Net is not exact on 5x5 images: why\. No size near it is exact\."):
        square_side("Net", 5, lambda side: False, "why")


def test_a_disk_of_many_pixels_names_its_own_size():
    from popmi_core.invariance.gcnn.steerable import SteerableCnn

    model = SteerableCnn(640, 1, CLASSES, widths=(1, 1, 1, 1))
    with pytest.raises(ModelError, match=r"disk is of 640 pixels\. The nearest exact size is 640"):
        model.forward_features(torch.zeros(1, 1, 32, 32))


def test_an_oblong_image_is_refused():
    with pytest.raises(ModelError, match="images are 28x32, expected square ones"):
        created("popmi_p4_cnn", (28, 32))


def test_odd_sizes_would_break_the_p4_network_indeed():
    # What the check is for: forced past it, pooling drops the last row and column.
    model = created("popmi_p4_cnn", width=3).eval()
    pixels = images(29)
    turned = model.forward_head(model.layers(act(point_group("C4").elements[1], pixels)).unflatten(1, (-1, 4)))
    upright = model.forward_head(model.layers(pixels).unflatten(1, (-1, 4)))
    assert (turned - upright).abs().max() > 1e-3


def test_larger_images_are_exact_too():
    assert worst(GroupCnn(36, 1, CLASSES, width=2).double(), images(36, 2), "C4") < EXACT
    assert worst(GroupTransformer(9, 1, CLASSES, width=6, pooling=False).double(), images(9), "C4") < EXACT
    assert worst(ModernGeVit(15, 1, CLASSES, patch_size=5, width=6).double(), images(15), "C4") < EXACT


def test_build_model_takes_them_as_any_backbone_and_repeats_their_weights():
    config = ModelConfig(backbone="popmi_p4_cnn", image_size=28, weights="random", adapter={"group": "none"})
    first, second = (build_model(config, CLASSES, seed=5) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    with pytest.raises(ModelError, match="nearest exact size is 32"):
        build_model(config.model_copy(update={"backbone": "popmi_ge_vit_p4", "image_size": 30}), CLASSES, seed=0)


@pytest.mark.parametrize(
    "name", [n for n, module in METHODS.items() if module.endswith(".networks") and n != "c8-steerable"]
)
def test_the_catalogue_builds_every_network_from_its_seed(name):
    context = MethodContext(lambda: pytest.fail("it has no backbone"), "C4", 28, 1, CLASSES, seed=3)
    entry = method(name)
    before = torch.get_rng_state()
    first, second = entry.build(context), entry.build(context)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.eval()(images(28, 2).float()).shape == (2, CLASSES)
    assert all((entry.guarantee, entry.cost, entry.source, entry.caveat))


@pytest.mark.parametrize(("train", "prefixes"), [("all", [("",)]), ("head", [("head.",)]), ("none", [])])
def test_the_context_says_what_of_a_network_is_trained(train, prefixes):
    model = method("p4-cnn").build(MethodContext(lambda: pytest.fail("no backbone"), "C4", 28, 1, CLASSES, 0, train))
    assert [phase.trained for phase in phases_of(model)] == prefixes
    if prefixes:
        assert any(name.startswith(prefixes[0]) for name, _ in model.named_parameters())
