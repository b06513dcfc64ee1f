"""DP-SGD: exact per-image gradients, the clipping bound, the noise that was promised."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import client.dpsgd
import client.train
from client.dpsgd import NoisyStep, image_gradients, poisson_batches, secret_generator
from client.ledger import Ledger
from client.objectives import Plain, Proximal
from client.privacy import Charge, PrivateRound
from client.train import train_locally
from popmi_core.config import LocalConfig, PrivacyConfig
from popmi_core.data.images import ImageSet
from popmi_core.errors import ModelError, PrivacyError

CLASSES = 3
TINY_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": CLASSES}


def make_model(name: str = "linear") -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", **TINY_VIT)
    if name == "adapter":
        # A frozen backbone with BatchNorm, and a head to train.
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        model[:2].requires_grad_(False)
        return model
    if name == "convolution":
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES))


def make_batch(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=dtype)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def one_image_at_a_time(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = []
    for image, label in zip(images, target, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, list(trained(model).values())))
    return {name: torch.stack(column) for name, column in zip(trained(model), zip(*rows, strict=True), strict=True)}


def make_step(
    model: nn.Module, *, noise: float, norm: float = 1.0, expected: float = 8.0, objective=None, seed: int = 0
):
    named = trained(model)
    charge = Charge(noise_multiplier=noise, max_grad_norm=norm, sample_rate=0.1, steps=1, epsilon=1.0)
    return NoisyStep(
        model,
        objective or Plain(),
        torch.optim.SGD(named.values(), lr=1.0),
        named,
        charge,
        expected_batch_size=expected,
        generator=torch.Generator().manual_seed(seed),
    )


def movement(model: nn.Module, step: NoisyStep, images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The step of plain SGD at rate 1, which is minus the gradient it used."""
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    step(images, target)
    return {name: before[name] - p.detach() for name, p in trained(model).items()}


def clipped_mean(model: nn.Module, images, target, *, norm: float, expected: float) -> dict[str, torch.Tensor]:
    per_image = one_image_at_a_time(model, images, target)
    lengths = torch.stack([g.flatten(1).norm(dim=1) for g in per_image.values()]).norm(dim=0)
    factors = (norm / (lengths + 1e-6)).clamp(max=1)
    return {name: torch.einsum("n,n...->...", factors, g) / expected for name, g in per_image.items()}


@pytest.mark.parametrize("name", ["linear", "convolution", "vit", "adapter"])
def test_image_gradients_are_those_of_single_images_class_token_and_positions_included(name):
    model = make_model(name).double().eval()
    images, target = make_batch(5, torch.float64)
    gradients, losses = image_gradients(model, Plain(), trained(model), images, target)
    expected = one_image_at_a_time(model, images, target)
    assert set(gradients) == set(expected)
    assert name != "vit" or {"cls_token", "pos_embed"} <= set(gradients)
    for key, gradient in expected.items():
        # float64: sums in another order, nothing else.
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(losses.mean(), nn.functional.cross_entropy(model(images), target))


@pytest.mark.parametrize("name", ["linear", "vit", "adapter"])
def test_a_step_without_noise_is_the_mean_of_clipped_gradients(name):
    model = make_model(name).double().eval()
    images, target = make_batch(6, torch.float64)
    expected = clipped_mean(model, images, target, norm=0.3, expected=8.0)
    moved = movement(model, make_step(model, noise=0.0, norm=0.3), images, target)
    for key, gradient in expected.items():
        torch.testing.assert_close(moved[key], gradient, rtol=1e-6, atol=1e-10)


def test_a_batch_cut_into_parts_steps_as_the_whole(monkeypatch):
    images, target = make_batch(7, torch.float64)
    whole, parts = make_model().double(), make_model().double()
    expected = movement(whole, make_step(whole, noise=0.5), images, target)
    monkeypatch.setattr(client.dpsgd, "GRADIENT_NUMBERS", 3 * sum(p.numel() for p in parts.parameters()))
    step = make_step(parts, noise=0.5)
    assert step.at_once == 3
    got = movement(parts, step, images, target)
    for key in expected:
        # The same numbers added in another order.
        torch.testing.assert_close(got[key], expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_no_image_moves_the_sum_by_more_than_the_clipping_norm(scale):
    model = make_model().double()
    images, target = make_batch(1, torch.float64)
    moved = movement(model, make_step(model, noise=0.0, norm=0.7, expected=1.0), images * scale, target)
    assert math.sqrt(sum((g**2).sum().item() for g in moved.values())) <= 0.7


def test_the_noise_has_the_promised_standard_deviation_in_every_parameter():
    model = make_model()
    with torch.no_grad():
        model[1].weight.zero_()
    # An empty batch moves by noise alone: sigma * C / expected batch size, here 2 * 0.5 / 8.
    moved = movement(model, make_step(model, noise=2.0, norm=0.5), *make_batch(0))
    draws = moved["1.weight"].flatten()
    expected = 2.0 * 0.5 / 8.0
    # 2304 draws: the sample deviation is off by 1.5 percent (one standard error), the mean by 2 percent of expected.
    assert draws.std().item() == pytest.approx(expected, rel=0.06)
    assert abs(draws.mean().item()) < 0.1 * expected
    assert (moved["1.bias"] != 0).all()


def test_noise_is_added_once_however_many_parts_a_batch_has(monkeypatch):
    model = make_model()
    monkeypatch.setattr(client.dpsgd, "GRADIENT_NUMBERS", 1)
    images, target = make_batch(20)
    quiet = make_model()
    expected = movement(quiet, make_step(quiet, noise=0.0, norm=1e-6), images, target)
    moved = movement(model, make_step(model, noise=2e6, norm=1e-6), images, target)
    difference = (moved["1.weight"] - expected["1.weight"]).std().item()
    # 2e6 * 1e-6 / 8; twenty times would be 4.5 times larger.
    assert difference == pytest.approx(2.0 / 8.0, rel=0.06)


def test_the_proximal_pull_is_added_after_the_noise_and_not_clipped():
    model = make_model().double()
    named = trained(model)
    objective = Proximal([torch.zeros_like(p) for p in named.values()], 5.0)
    images, target = make_batch(4, torch.float64)
    expected = clipped_mean(model, images, target, norm=0.1, expected=8.0)
    pulls = {name: 5.0 * p.detach() for name, p in named.items()}
    moved = movement(model, make_step(model, noise=0.0, norm=0.1, objective=objective), images, target)
    for key in expected:
        torch.testing.assert_close(moved[key], expected[key] + pulls[key], rtol=1e-6, atol=1e-10)


def test_poisson_batches_draw_every_image_independently_at_the_sample_rate():
    charge = Charge(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.2, steps=2000, epsilon=1.0)
    batches = list(poisson_batches(10, charge, 2000, torch.Generator().manual_seed(0)))
    assert len(batches) == 2000
    drawn = torch.zeros(2000, 10)
    for row, batch in enumerate(batches):
        drawn[row, batch] = 1
    # 2000 draws of rate 0.2 have a standard error of 0.009; sizes of Binomial(10, 0.2) vary by 1.6.
    assert (drawn.mean(0) - 0.2).abs().max() < 0.04
    assert drawn.sum(1).var().item() == pytest.approx(1.6, rel=0.15)
    assert (drawn.sum(1) == 0).any()


def test_two_secret_generators_never_draw_the_same():
    assert torch.rand(4, generator=secret_generator()).tolist() != torch.rand(4, generator=secret_generator()).tolist()


def make_data(count: int = 40) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), rng.integers(0, CLASSES, count))


def train(folder, model: nn.Module, *, server_round: int = 1, seed: int = 0, normalise=None, data=None, **local):
    privacy = PrivateRound(
        PrivacyConfig(target_epsilon=8.0, target_delta=1e-3),
        Ledger(folder / "ledger.json", site="msk"),
        run="run",
        server_round=server_round,
        rounds=2,
    )
    return train_locally(
        model,
        make_data() if data is None else data,
        LocalConfig(**{"batch_size": 10, **local}),
        num_classes=CLASSES,
        normalise=normalise or (lambda x: x.permute(0, 3, 1, 2) / 255 - 0.5),
        seed=seed,
        privacy=privacy,
    )


def test_a_private_round_reports_noise_and_epsilon_and_moves_the_model(tmp_path):
    model = make_model("vit")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = train(tmp_path, model, epochs=2, objective="proximal")
    entry = Ledger(tmp_path / "ledger.json", site="msk").entries()[-1]
    assert report.epsilon == entry.epsilon
    assert report.noise_multiplier == entry.noise_multiplier
    assert report.steps == entry.steps == 8
    assert len(report.loss_by_epoch) == 2
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_frozen_backbone_with_batch_norm_trains_privately_and_keeps_its_statistics(tmp_path):
    model = make_model("adapter")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(tmp_path, model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"4.weight", "4.bias"}


def test_the_seed_of_the_run_does_not_give_the_noise_away(tmp_path):
    models = [make_model(), make_model()]
    for number, model in enumerate(models):
        train(tmp_path / str(number), model, seed=5)
    assert not torch.equal(models[0][1].weight, models[1][1].weight)


def test_the_seed_of_the_run_does_not_give_the_batches_or_views_away(tmp_path):
    def views(folder) -> torch.Tensor:
        seen = []
        train(folder, make_model(), seed=5, normalise=lambda x: seen.append(x) or x.permute(0, 3, 1, 2) / 255)
        return torch.cat(seen)

    first, second = views(tmp_path / "a"), views(tmp_path / "b")
    # 40 images, each with its own turn and brightness: chance does not repeat them.
    assert first.shape != second.shape or not torch.equal(first, second)


def test_gradients_are_divided_by_the_size_a_batch_has_on_average(tmp_path, monkeypatch):
    seen = []

    class Spy(client.dpsgd.DPOptimizer):
        def __init__(self, optimizer, **settings) -> None:
            seen.append(settings)
            super().__init__(optimizer, **settings)

    monkeypatch.setattr(client.dpsgd, "DPOptimizer", Spy)
    report = train(tmp_path, make_model(), data=make_data(25))
    # 25 images in batches of at most 10 are 3 batches of 8.33 on average.
    assert seen[0]["expected_batch_size"] == pytest.approx(25 / 3)
    assert seen[0]["noise_multiplier"] == report.noise_multiplier
    assert seen[0]["max_grad_norm"] == 1.0


def test_a_spent_budget_stops_the_site_before_an_image_is_touched(tmp_path):
    for server_round in (1, 2):
        train(tmp_path, make_model(), server_round=server_round)

    def untouched(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("an image was read")

    model = make_model()
    with pytest.raises(PrivacyError, match="site msk, round 3: budget spent"):
        train(tmp_path, model, server_round=3, normalise=untouched)
    assert torch.equal(model[1].weight, make_model()[1].weight)


def test_a_crash_in_training_leaves_the_round_paid_for(tmp_path):
    def crash(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, make_model(), normalise=crash)
    assert len(Ledger(tmp_path / "ledger.json", site="msk").entries()) == 1


def test_a_refused_model_or_objective_costs_nothing(tmp_path):
    batch_norm = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(PrivacyError, match="'0' is a BatchNorm2d"):
        train(tmp_path, batch_norm)
    with pytest.raises(PrivacyError, match="class frequencies"):
        train(tmp_path, make_model(), objective="calibrated")
    with pytest.raises(ModelError, match="frozen"):
        train(tmp_path, make_model().requires_grad_(False))
    assert not (tmp_path / "ledger.json").exists()


def test_an_epoch_in_which_no_image_was_drawn_reports_no_loss(tmp_path, monkeypatch):
    nobody = [torch.zeros(0, dtype=torch.int64)] * 4
    monkeypatch.setattr(client.dpsgd, "poisson_batches", lambda *arguments: nobody)
    report = train(tmp_path, make_model())
    assert math.isnan(report.loss)
    assert report.steps == 4
