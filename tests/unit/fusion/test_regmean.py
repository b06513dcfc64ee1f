"""RegMean: the least-squares optimum, from Gram matrices that a model's hooks collect."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from popmi_core.adapters import attach, equivariance_error
from popmi_core.config import FuseConfig
from popmi_core.errors import DataError, UpdateError
from popmi_core.fusion import Update, fuse, needs
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.regmean import regression_mean

EXACT = FuseConfig(regmean_shrink=1.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_sites(width=5, out=3, rows=40):
    inputs = [draw(rows, width, seed=k) * torch.linspace(0.1, 3, width) for k in range(2)]
    weights = [draw(out, width, seed=10 + k) for k in range(2)]
    updates = [
        Update(
            f"site_{k}", {"fc.weight": weights[k], "fc.bias": draw(out, seed=20 + k)}, 10 + 20 * k,
            grams={"fc": inputs[k].T @ inputs[k] / rows},
        )
        for k in range(2)
    ]  # fmt: skip
    return inputs, weights, updates, {"fc.weight": weights[0], "fc.bias": torch.zeros(out, dtype=torch.float64)}


def test_the_layer_is_the_least_squares_answer_to_all_inputs():
    inputs, weights, updates, reference = two_sites()

    fused = fuse("regmean", updates, reference=reference, config=EXACT)

    # Shares 1/4 and 3/4 of the same number of rows each: weigh the rows by their square roots.
    shares = [0.25**0.5, 0.75**0.5]
    rows = np.concatenate([s * x.numpy() for s, x in zip(shares, inputs, strict=True)])
    target = np.concatenate([s * (x @ w.T).numpy() for s, x, w in zip(shares, inputs, weights, strict=True)])
    expected = np.linalg.lstsq(rows, target, rcond=None)[0].T
    # Normal equations square a condition number of about 30.
    np.testing.assert_allclose(fused.state["fc.weight"].numpy(), expected, rtol=1e-10)
    assert fused.notes == {"fc": "RegMean"}


def test_no_other_weight_answers_the_sites_inputs_better():
    inputs, weights, updates, reference = two_sites()
    best = fuse("regmean", updates, reference=reference, config=EXACT).state["fc.weight"]

    def error(weight):
        return sum(
            share * float((x @ (weight - w).T).square().sum())
            for share, x, w in zip((0.25, 0.75), inputs, weights, strict=True)
        )

    assert all(error(best) < error(best + 0.01 * draw(3, 5, seed=seed)) for seed in range(50))


def test_biases_and_other_tensors_are_averaged_plainly():
    _, _, updates, reference = two_sites()

    fused = fuse("regmean", updates, reference=reference)

    plain = fuse("average", updates, reference=reference)
    assert torch.equal(fused.state["fc.bias"], plain.state["fc.bias"])
    assert not torch.equal(fused.state["fc.weight"], plain.state["fc.weight"])


def test_same_inputs_everywhere_give_the_plain_average():
    _, _, updates, reference = two_sites()
    gram = updates[0].grams["fc"]
    same = [Update(u.site, u.state, u.num_examples, {"fc": gram}) for u in updates]

    fused = fuse("regmean", same, reference=reference)

    plain = fuse("average", same, reference=reference).state["fc.weight"]
    torch.testing.assert_close(fused.state["fc.weight"], plain, rtol=1e-12, atol=1e-13)


def test_shrinking_to_the_diagonal_weighs_every_input_by_itself():
    _, weights, updates, reference = two_sites()

    fused = fuse("regmean", updates, reference=reference, config=FuseConfig(regmean_shrink=0.0))

    sizes = [share * u.grams["fc"].diagonal() for share, u in zip((0.25, 0.75), updates, strict=True)]
    expected = (sizes[0] * weights[0] + sizes[1] * weights[1]) / (sizes[0] + sizes[1])
    torch.testing.assert_close(fused.state["fc.weight"], expected, rtol=1e-12, atol=1e-13)


def test_an_input_that_is_never_active_is_averaged_plainly():
    _, weights, updates, reference = two_sites()
    for update in updates:
        update.grams["fc"][2] = 0
        update.grams["fc"][:, 2] = 0

    fused = fuse("regmean", updates, reference=reference, config=EXACT)

    torch.testing.assert_close(fused.state["fc.weight"][:, 2], 0.25 * weights[0][:, 2] + 0.75 * weights[1][:, 2])
    assert fused.notes == {"fc": "RegMean; 1 inputs never active, averaged plainly"}


def test_float32_gram_matrices_are_good_enough():
    _, _, updates, reference = two_sites()
    rounded = [Update(u.site, u.state, u.num_examples, {"fc": u.grams["fc"].float()}) for u in updates]

    exact = fuse("regmean", updates, reference=reference).state["fc.weight"]
    found = fuse("regmean", rounded, reference=reference).state["fc.weight"]

    # Float32 rounding times the condition number.
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_a_lone_site_is_returned_as_it_is():
    _, _, updates, reference = two_sites()

    fused = fuse("regmean", updates[:1], reference=reference)

    assert torch.equal(fused.state["fc.weight"], updates[0].state["fc.weight"])
    assert fused.notes == {"all": "one site only: its model as it is"}


def test_too_few_inputs_are_said_to_leave_the_layer_open():
    gram = torch.ones(3, 3, dtype=torch.float64)

    with pytest.raises(UpdateError, match=r"Gram matrices of 'fc' do not determine its 3 active inputs"):
        regression_mean([(1.0, gram, draw(2, 3))], shrink=1.0, layer="fc")


def test_a_site_without_gram_matrices_is_named():
    _, _, updates, reference = two_sites()
    silent = Update("site_1", updates[1].state, 5)

    assert needs("regmean").grams
    with pytest.raises(UpdateError, match=r"rule regmean needs every site's input Gram matrices, but site_1 sent none"):
        fuse("regmean", [updates[0], silent], reference=reference)


def test_a_layer_that_one_site_left_out_is_named():
    _, _, updates, reference = two_sites()
    updates = [updates[0], Update("site_1", updates[1].state, 5, {"other": torch.eye(2)})]

    with pytest.raises(UpdateError, match="site site_1: no Gram matrix of 'fc', which another site sent"):
        fuse("regmean", updates, reference=reference)


def test_gram_matrices_of_other_layers_only_are_refused():
    _, _, updates, reference = two_sites()
    updates = [Update(u.site, u.state, u.num_examples, {"frozen": torch.eye(2)}) for u in updates]

    with pytest.raises(UpdateError, match="1 Gram matrices came and none belongs to an exchanged weight"):
        fuse("regmean", updates, reference=reference)


def spoil(gram, how):
    if how == "crooked":
        gram[0, 1] += 1
    elif how == "negative":
        gram[0, 0] = -1
    elif how == "indefinite":
        gram[0, 1] = gram[1, 0] = 100
    return gram


@pytest.mark.parametrize("how", ["crooked", "negative", "indefinite"])
def test_what_is_no_sum_of_squares_is_refused(how):
    _, _, updates, reference = two_sites()
    spoil(updates[1].grams["fc"], how)

    with pytest.raises(UpdateError, match="site site_1: the Gram matrix of 'fc' is not symmetric and positive"):
        fuse("regmean", updates, reference=reference)


def test_a_gram_matrix_of_the_wrong_size_is_refused():
    _, _, updates, reference = two_sites()
    updates[0].grams["fc"] = torch.eye(4)

    with pytest.raises(UpdateError, match=r"the Gram matrix of 'fc' has shape \(4, 4\), expected \(5, 5\)"):
        fuse("regmean", updates, reference=reference)


def test_nan_in_a_gram_matrix_is_refused():
    _, _, updates, reference = two_sites()
    updates[0].grams["fc"][0, 0] = torch.nan

    with pytest.raises(UpdateError, match="site site_0: the Gram matrix of 'fc' holds NaN or infinity"):
        fuse("regmean", updates, reference=reference)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.drop(self.depthwise(self.conv(images)).flatten(2).mT))


def test_hooks_collect_what_multiplies_each_weight():
    model, images = Net().double().train(), draw(6, 3, 8, 8)

    grams = input_grams(model, images, batch_size=4)

    patches = functional.unfold(images, 3, padding=1, stride=2).mT.flatten(0, 1)
    tokens = model.depthwise(model.conv(images)).flatten(2).mT.flatten(0, 1)
    assert set(grams) == {"conv", "fc"}
    # Float64 sums of a few hundred products; the depthwise output has 4 positions per image.
    torch.testing.assert_close(grams["conv"], patches.T @ patches / 6, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grams["fc"], (tokens.T @ tokens / 6).detach(), rtol=1e-12, atol=1e-12)
    # The unfolded patches are in the order of the flattened weight.
    rows = patches @ model.conv.weight.flatten(1).T + model.conv.bias
    torch.testing.assert_close(model.conv(images).flatten(2).mT.flatten(0, 1), rows)


def test_collecting_does_not_depend_on_the_batch_size_and_leaves_the_model_alone():
    model, images = Net().train(), draw(7, 3, 8, 8).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    one, other = input_grams(model, images, batch_size=7), input_grams(model, images, batch_size=2)

    for layer in one:
        # Float32 forward passes.
        torch.testing.assert_close(one[layer], other[layer], rtol=1e-5, atol=1e-6)
        assert one[layer].dtype == torch.float64
    assert model.drop.training
    assert not model.conv._forward_pre_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_every_linear_layer_of_a_vit_is_collected_and_fused(small_vit):
    model, images = small_vit(), draw(4, 3, 32, 32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grams = input_grams(model, images)

    fused = fuse("regmean", [Update(s, state, 3, grams) for s in ("a", "b")], reference=state)

    assert sorted(grams) == sorted(
        n.removesuffix(".weight") for n, t in state.items() if n.endswith("weight") and t.ndim > 1
    )
    for name, tensor in state.items():
        # Few images: Gram matrices shrunk by a tenth have condition numbers of some thousands.
        torch.testing.assert_close(fused.state[name], tensor, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_between_regular_fields_the_stored_weight_is_what_is_solved_for(group):
    plain = timm.create_model("popmi_resnet20", num_classes=5)
    model = attach(plain, group=group, fields="regular").double().eval()
    order, images = len(model.group), draw(3, 3, 9, 9)

    grams = input_grams(model, images)

    with torch.no_grad():
        head, features = model.backbone.fc, model.backbone.forward_head(model.backbone.forward_features(images), True)
        sums = head.free_inputs(features)
        torch.testing.assert_close(sums @ model.state_dict()["backbone.fc.weight"].T + head.bias, head(features))
        torch.testing.assert_close(grams["backbone.fc"], sums.T @ sums / 3)
        conv = model.backbone.layer2[0].downsample[0]
        rows = draw(7, conv.in_channels)
        free = conv.free_inputs(rows) @ model.state_dict()["backbone.layer2.0.downsample.0.weight"].flatten(1).T
        fields = (rows @ conv.weight.flatten(1).T).unflatten(1, (-1, order)).mT
        torch.testing.assert_close(free.unflatten(0, (7, order)), fields)
    states = [model.state_dict(), {name: 1.5 * tensor for name, tensor in model.state_dict().items()}]
    fused = fuse("regmean", [Update(s, state, 3, grams) for s, state in zip("ab", states, strict=True)],
                 reference=states[0])  # fmt: skip
    model.load_state_dict(fused.state)
    # Float64: rounding only.
    assert equivariance_error(model, images, model.group) < 1e-10


def test_a_convolution_padded_in_another_way_is_left_out():
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3, padding="same"))

    assert input_grams(model, draw(2, 3, 8, 8).float()) == {}


def test_no_image_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)

    with pytest.raises(DataError, match="input_grams: got no image"):
        input_grams(model, torch.zeros(0, 3, 16, 16))
