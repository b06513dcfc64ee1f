"""Training in one place: what moves, what is kept, and that it is the same twice."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError, DataError, ModelError, RunError
from popmi_core.invariance.method import Phase
from popmi_core.learning.fit import FitConfig, fit, rate
from popmi_core.learning.judge import better, judge_on

CLASSES = 3


def make_data(count: int = 48, side: int = 8, seed: int = 0) -> ImageSet:
    """Images whose brightest colour channel is their class: learnable in seconds, whatever way they are turned."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 120, (count, side, side, 3)).astype(np.uint8)
    images[np.arange(count), :, :, targets] += 100
    return ImageSet(images, targets.astype(np.int64))


class Net(nn.Sequential):
    def __init__(self, *, norm: bool = False, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8, CLASSES),
        )


def run(model: nn.Module, **changes):
    on_epoch, objective, judge = (changes.pop(key, None) for key in ("on_epoch", "objective", "judge"))
    train, val = changes.pop("train", make_data()), changes.pop("val", make_data(30, seed=1))
    config = FitConfig(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.02, **changes})
    return fit(model, train, val, config, on_epoch=on_epoch, objective=objective, judge=judge)


def test_training_learns_and_tells_of_every_epoch():
    seen = []
    fitted = run(Net(), epochs=8, on_epoch=seen.append)
    assert [epoch.number for epoch in fitted.history] == list(range(1, 9))
    assert list(fitted.history) == seen
    # The classes differ by colour alone; guessing hits a third.
    assert fitted.best.figures["balanced_accuracy"] > 0.9
    assert fitted.history[-1].loss < 0.7 * fitted.history[0].loss
    assert all(epoch.seconds > 0 and epoch.images_per_second > 0 for epoch in fitted.history)
    assert fitted.best.figures["balanced_accuracy"] == max(e.figures["balanced_accuracy"] for e in fitted.history)


def test_the_same_seed_gives_the_same_bits_and_the_global_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [Net(dropout=0.3) for _ in range(3)]
    torch.manual_seed(5)
    first, again, other = (run(model, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True))
    assert torch.rand(1) == expected
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    assert [e.loss for e in first.history] == [e.loss for e in again.history]
    assert not all(torch.equal(first.state[name], other.state[name]) for name in first.state)


def test_the_model_is_left_at_the_best_epoch_and_evaluates():
    figures = iter([0.4, 0.9, 0.5])
    states = []

    def judge(model):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"accuracy": next(figures), "nll": 1.0}

    model = Net(norm=True)
    fitted = run(model, choose="accuracy", judge=judge)
    assert fitted.best.number == 2
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(tensor, fitted.state[name])


def test_ties_go_to_the_lower_loss_and_an_undefined_figure_loses():
    assert better({"accuracy": 0.5, "nll": 0.9}, {"accuracy": 0.5, "nll": 1.0}, "accuracy")
    assert not better({"accuracy": 0.5, "nll": 1.0}, {"accuracy": 0.5, "nll": 1.0}, "accuracy")
    assert not better({"auroc": math.nan, "nll": 0.1}, {"auroc": 0.1, "nll": 1.0}, "auroc")
    assert better({"nll": 0.1}, {"nll": 0.2}, "nll")
    assert better({}, {}, "last")


def test_the_last_epoch_needs_no_validation_image():
    fitted = run(Net(), val=ImageSet.empty(8), choose="last")
    assert fitted.best.number == 3
    assert fitted.best.figures == {}


class TwoParts(Net):
    def phases(self):
        return (Phase("body", 0.6, ("0.",)), Phase("head", 0.4, ("6.",)))


def test_phases_move_their_own_parameters_only_and_leave_all_free():
    model = TwoParts()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after_body = {}

    def keep(epoch):
        if epoch.phase == "body":
            after_body.update({name: p.detach().clone() for name, p in model.named_parameters()})

    # Whatever the validation says, a phase ends at its last epoch here.
    fitted = run(model, epochs=5, choose="last", on_epoch=keep)
    assert [epoch.phase for epoch in fitted.history] == ["body"] * 3 + ["head"] * 2
    assert torch.equal(after_body["6.weight"], before["6.weight"])
    assert not torch.equal(after_body["0.weight"], before["0.weight"])
    assert torch.equal(fitted.state["0.weight"], after_body["0.weight"])
    assert not torch.equal(fitted.state["6.weight"], before["6.weight"])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("epochs", "shares", "expected"),
    [
        (2, (0.2, 0.8), [1, 1]),
        (3, (0.2, 0.8), [1, 2]),
        (6, (0.2, 0.8), [1, 5]),
        (8, (0.2, 0.8), [2, 6]),
        (10, (0.5, 0.01, 0.49), [5, 1, 4]),
        (3, (0.98, 0.01, 0.01), [1, 1, 1]),
        (7, (1.0,), [7]),
    ],
)
def test_phases_share_the_epochs_that_were_asked_for(epochs, shares, expected):
    class Staged(Net):
        def phases(self):
            return tuple(Phase(f"part {place}", share, ("",)) for place, share in enumerate(shares))

    fitted = run(Staged(), epochs=epochs, train=make_data(8), val=ImageSet.empty(8), choose="last")
    named = [epoch.phase for epoch in fitted.history]
    assert [named.count(f"part {place}") for place in range(len(shares))] == expected


def test_fewer_epochs_than_phases_are_refused():
    with pytest.raises(ConfigError, match=r"epochs is 1, expected at least 2: .* 2 phases \(body, head\)"):
        run(TwoParts(), epochs=1)


class Untrained(Net):
    def phases(self):
        return ()


def test_a_model_with_nothing_to_train_is_only_judged():
    model = Untrained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted = run(model)
    assert fitted.history == ()
    assert fitted.best.number == 0
    assert 0 <= fitted.best.figures["accuracy"] <= 1
    assert all(torch.equal(before[name], fitted.state[name]) for name in before)


class WithPrior(Net):
    """A loss of its own that pulls the head's bias to five; it is asked for after every training forward."""

    def extra_loss(self):
        return 100 * ((self[6].bias - 5) ** 2).sum() if self.training else None


def test_a_models_own_loss_is_added():
    fitted = run(WithPrior(), epochs=30, learning_rate=0.2, weight_decay=0.0, choose="last")
    # AdamW moves a weight by about its rate in a step: 90 steps of a mean of 0.1 reach 5 and settle.
    assert (fitted.state["6.bias"] - 5).abs().max() < 0.3


def test_frozen_weights_stay_and_their_norms_do_not_measure():
    model = Net(norm=True)
    for name in ("0", "1"):
        model.get_submodule(name).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = run(model).state
    moved = {name for name in state if not torch.equal(state[name], before[name])}
    assert moved == {"6.weight", "6.bias"}
    assert not model[0].weight.requires_grad


def test_one_training_image_does_not_break_a_norm():
    fitted = run(Net(norm=True), train=make_data(1), choose="last")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fitted.state.values())


def test_an_objective_may_look_at_images_alone():
    def towards_zero(model, images, target):
        return (model(images) ** 2).mean()

    model = Net()
    fitted = run(model, objective=towards_zero, choose="nll", judge=lambda m: {"nll": float(m[6].weight.norm())})
    assert fitted.history[-1].loss < fitted.history[0].loss


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine_to_zero():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    # One step short of the end of a cosine of 90 steps: 0.5 (1 - cos(pi / 90)).
    assert rates[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))
    assert rate(0, 1, 0.0) == 1.0


def test_a_loss_that_diverges_says_what_to_do():
    with pytest.raises(RunError, match=r"epoch 1: the training loss is .*Lower the learning rate \(it is 0.02\)"):
        run(Net(), objective=lambda model, images, target: model(images).sum() * math.nan)
    with pytest.raises(RunError, match="epoch 1: a weight became NaN or infinite"):
        run(Net(), train=make_data(8), objective=lambda model, images, target: (model[6].bias * 0).sqrt().sum())


def test_answers_that_overflow_after_a_finite_step_say_so_too():
    with pytest.raises(RunError, match=r"answers to validation images are NaN or infinite.*Lower the learning rate"):
        judge_on(make_data(4), lambda stored: stored.permute(0, 3, 1, 2) * math.inf, needed="accuracy")(Net())


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(DataError, match="the training set is empty"):
        run(Net(), train=ImageSet.empty(8))
    with pytest.raises(DataError, match="no validation image to choose an epoch by balanced_accuracy"):
        run(Net(), val=ImageSet.empty(8))
    with pytest.raises(DataError, match="of one class, of which no AUROC"):
        judge_on(ImageSet(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64)), lambda x: x, needed="auroc")
    frozen = Net().requires_grad_(False)
    with pytest.raises(ModelError, match="phase all of Net has nothing to train"):
        run(frozen)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": math.nan}, {"warmup": 1.0}, {"max_grad_norm": 0.0}]
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} is "):
        FitConfig(**changes)
