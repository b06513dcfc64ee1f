"""Local objectives: each against its formula, and against what it was invented for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from client.objectives import Broadcast, Calibrated, ControlVariates, Plain, Proximal, build_objective
from client.train import train_locally
from popmi_core.config import LocalConfig
from popmi_core.data.images import ImageSet
from popmi_core.errors import UpdateError


def parameter(values: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def named_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def build(objective: str, model: nn.Module, **broadcast):
    local = LocalConfig(objective=objective)
    return build_objective(local, named_of(model), torch.tensor([0, 1]), 2, Broadcast(**broadcast))


def test_the_proximal_gradient_is_the_one_of_the_written_formula():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    reference = [torch.randn_like(p) for p in model.parameters()]
    x, target, mu = torch.randn(7, 5).double(), torch.randint(0, 3, (7,)), 0.3
    parameters = list(model.parameters())
    distance = sum(((p - r) ** 2).sum() for p, r in zip(parameters, reference, strict=True))
    expected = torch.autograd.grad(cross_entropy(model(x), target) + mu / 2 * distance, parameters)

    objective = Proximal(reference, mu)
    objective.loss(model(x), target).backward()
    objective.correct(parameters)

    for p, gradient in zip(parameters, expected, strict=True):
        # The same sums in another order, in float64.
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_strong_proximal_term_keeps_the_site_at_the_broadcast_model():
    def distance(mu: float) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        rng = np.random.default_rng(0)
        data = ImageSet(rng.integers(0, 255, (20, 4, 4, 3)).astype(np.uint8), rng.integers(0, 2, 20))
        local = LocalConfig(objective="proximal", proximal_mu=mu, optimizer="sgd", learning_rate=0.05, epochs=20)
        train_locally(
            model, data, local, num_classes=2, normalise=lambda x: x.permute(0, 3, 1, 2) / 255, seed=0, reference=start
        )
        return sum((p - start[name]).norm().item() for name, p in model.named_parameters())

    # Measured a quarter; half is far from what chance does to twenty epochs.
    assert distance(10.0) < 0.5 * distance(0.1)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 8), each=st.integers(1, 5), tau=st.floats(0.1, 3), seed=st.integers(0, 2**16))
def test_the_calibrated_loss_is_cross_entropy_where_all_classes_are_equally_frequent(classes, each, tau, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(classes).repeat(each)
    logits = torch.randn(len(target), classes, generator=generator)
    loss = Calibrated(target, classes, tau).loss(logits, target)
    # A constant added to all logits cancels in float32 up to rounding.
    torch.testing.assert_close(loss, cross_entropy(logits, target), rtol=1e-5, atol=1e-5)


def test_the_calibrated_loss_equals_the_adjusted_softmax_written_out():
    target = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[0.2, -0.4], [1.0, 0.3], [0.1, 0.0], [-0.6, 0.9]])
    prior = torch.tensor([4 / 6, 2 / 6])  # (3 + 1) and (1 + 1) of 4 + 2
    weighted = prior**2.0 * logits.exp()
    expected = -(weighted / weighted.sum(1, keepdim=True))[range(4), target].log().mean()
    torch.testing.assert_close(Calibrated(target, 2, 2.0).loss(logits, target), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(target=st.lists(st.integers(0, 6), min_size=1, max_size=50), tau=st.floats(0.1, 10))
def test_a_class_missing_at_the_site_never_makes_the_calibrated_loss_infinite(target, tau):
    target = torch.tensor(target)
    logits = torch.zeros(len(target), 7, requires_grad=True)
    loss = Calibrated(target, 7, tau).loss(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_missing_class_is_pushed_down_less_by_the_calibrated_loss():
    target = torch.zeros(50, dtype=torch.int64)

    def push(objective) -> float:
        logits = torch.zeros(50, 3, requires_grad=True)
        objective.loss(logits, target).backward()
        return logits.grad[:, 2].sum().item()

    assert 0 < push(Calibrated(target, 3, 1.0)) < 0.1 * push(Plain())


def run_sites(control_variates: bool, rounds: int = 60, steps: int = 10, rate: float = 0.1) -> torch.Tensor:
    """Two sites with losses ``a_i / 2 * ||w - m_i||**2`` of different curvature; returns the server's model."""
    curvature, middle = (1.0, 4.0), (torch.tensor([0.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double())
    server, c = torch.zeros(2).double(), torch.zeros(2).double()
    kept = [torch.zeros(2).double() for _ in middle]
    for _ in range(rounds):
        models, changes = [], []
        for site, (a, m) in enumerate(zip(curvature, middle, strict=True)):
            w = nn.Parameter(server.clone())
            objective = ControlVariates(["w"], [kept[site]], [c]) if control_variates else Plain()
            for _ in range(steps):
                w.grad = a * (w.detach() - m)
                objective.correct([w])
                w.data -= rate * w.grad
            models.append(w.detach())
            update = objective.finish()
            if update:
                kept[site], change = update.control["w"], update.change["w"]
                changes.append(change)
        server = torch.stack(models).mean(0)
        c = c + torch.stack(changes).mean(0) if changes else c
    return server


def test_control_variates_reach_the_optimum_that_averaging_drifts_away_from():
    optimum = (1.0 * torch.tensor([0.0, 2.0]) + 4.0 * torch.tensor([3.0, -1.0])).double() / 5
    with_them, without = run_sites(True), run_sites(False)
    # Linear convergence: 60 rounds leave nothing but rounding of a few dozen additions.
    torch.testing.assert_close(with_them, optimum, rtol=0, atol=1e-6)
    # Averaging forgets the curvatures: it ends near the plain mean of the two minima.
    assert (without - optimum).norm() > 0.5


def test_the_kept_mean_is_option_two_of_scaffold_under_plain_sgd():
    torch.manual_seed(1)
    w, rate, steps = nn.Parameter(torch.randn(6).double()), 0.05, 7
    own, server = torch.randn(6).double(), torch.randn(6).double()
    start = w.detach().clone()
    objective = ControlVariates(["w"], [own], [server])
    for _ in range(steps):
        w.grad = torch.randn(6).double()
        objective.correct([w])
        w.data -= rate * w.grad
    update = objective.finish()
    expected = own - server + (start - w.detach()) / (steps * rate)
    # One formula written in two ways, in float64.
    torch.testing.assert_close(update.control["w"], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(update.change["w"], expected - own, rtol=1e-10, atol=1e-12)


def test_control_variates_go_out_with_the_report_and_come_back_next_round():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    rng = np.random.default_rng(0)
    data = ImageSet(rng.integers(0, 255, (20, 4, 4, 3)).astype(np.uint8), rng.integers(0, 2, 20))
    local = LocalConfig(objective="control_variates", batch_size=5)

    def one(**controls):
        return train_locally(
            model, data, local, num_classes=2, normalise=lambda x: x.permute(0, 3, 1, 2) / 255, seed=0, **controls
        ).control

    first = one()
    assert set(first.control) == {"1.weight", "1.bias"}
    second = one(control=first.control, server_control=first.change)
    for name, change in second.change.items():
        # A difference of float32 numbers of size one.
        torch.testing.assert_close(first.control[name] + change, second.control[name], rtol=0, atol=1e-5)


def test_objectives_do_not_change_what_they_were_given():
    reference, control = [torch.ones(3).double()], [torch.ones(3).double()]
    for objective in (Proximal(reference, 0.5), ControlVariates(["w"], control, control)):
        w = parameter([1.0, 2.0, 3.0])
        objective.correct([w])
        w.data += 1
        objective.finish()
    assert torch.equal(reference[0], torch.ones(3).double())
    assert torch.equal(control[0], torch.ones(3).double())


@pytest.mark.parametrize("objective", ["plain", "proximal", "control_variates", "calibrated"])
def test_every_objective_of_the_configuration_can_be_built_without_a_broadcast(objective):
    assert torch.isfinite(build(objective, nn.Linear(2, 2)).loss(torch.zeros(1, 2), torch.tensor([0])))


@pytest.mark.parametrize(
    ("objective", "key", "whose"),
    [
        ("proximal", "reference", "the broadcast model"),
        ("control_variates", "control", "the site's control variate"),
        ("control_variates", "server_control", "the server's control variate"),
    ],
)
def test_a_broadcast_that_does_not_fit_is_named(objective, key, whose):
    with pytest.raises(UpdateError, match=rf"{whose}: 'bias' is missing, expected shape \(2,\)"):
        build(objective, nn.Linear(2, 2), **{key: {"weight": torch.zeros(2, 2)}})
    with pytest.raises(UpdateError, match=rf"{whose}: 'weight' is of shape \(3, 2\), expected shape \(2, 2\)"):
        build(objective, nn.Linear(2, 2), **{key: {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}})
