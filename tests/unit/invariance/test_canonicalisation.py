"""Canonicalisation: one orientation is chosen for the whole orbit, and training can learn which."""

import copy

import pytest
import torch
from orbit_backbones import context, noise, shaken
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the small ViTs)
from popmi_core.errors import ConfigError
from popmi_core.groups import image_action, orbit
from popmi_core.invariance.build import build_method
from popmi_core.invariance.canonicalisation import Canonicalised, Energy, chosen, prior_loss
from popmi_core.invariance.method import ExtraLoss


def model(group="D4", **changes):
    backbone = shaken(context().backbone())
    return Canonicalised(backbone, image_action(group), **changes).eval()


@pytest.mark.parametrize("group", ["C2", "C4", "D4"])
def test_every_copy_of_an_image_is_turned_into_the_same_one(group):
    net, x = model(group), noise(count=2)
    copies = orbit(net.action, x).reshape(len(net.action), *x.shape)
    canonical = []
    for copy_of in copies:
        again = orbit(net.action, copy_of)
        scores = net.energy(again).reshape(len(net.action), -1)
        canonical.append(chosen(scores, again.reshape(copies.shape), soft=False))
    for one in canonical[1:]:
        assert torch.equal(one, canonical[0])  # pixels only move: not even rounding differs


def test_the_backbone_sees_the_copy_with_the_highest_score():
    net, x = model("C4"), noise(count=6)
    for i in range(len(x)):
        copies = [torch.rot90(x[i : i + 1], turns, (2, 3)) for turns in range(4)]
        best = max(copies, key=lambda one: float(net.energy(one).detach()))
        torch.testing.assert_close(net(x)[i : i + 1], net.backbone(best))


def test_training_and_evaluation_choose_the_same_copy():
    net, x = model(), noise()
    torch.testing.assert_close(net.train()(x), net.eval()(x), rtol=0, atol=1e-12)


def test_the_soft_choice_has_the_gradient_of_the_softmax_mix():
    scores = noise(size=4, count=1, channels=2)[0, 0, :, :2].clone().requires_grad_()  # [order 4, n 2]
    copies, target = noise(size=3, count=8).reshape(4, 2, 3, 3, 3), noise(size=3, count=2, seed=5)
    (chosen(scores, copies, soft=True) * target).sum().backward()
    mix = (scores.softmax(dim=0)[:, :, None, None, None] * copies).sum(dim=0)
    (expected,) = torch.autograd.grad((mix * target).sum(), scores)
    torch.testing.assert_close(scores.grad, expected)
    assert not chosen(scores, copies, soft=False).requires_grad


def test_the_prior_is_the_divergence_from_the_identity():
    scores = noise(size=4, count=1, channels=2)[0, 0]
    p = scores.softmax(dim=0)
    identity = torch.zeros_like(p)
    identity[0] = 1
    by_torch = functional.kl_div(p.log(), identity, reduction="sum") / p.shape[1]
    torch.testing.assert_close(prior_loss(scores), by_torch)
    assert prior_loss(torch.tensor([[50.0], [0.0]])) < 1e-12


def test_the_prior_comes_once_after_a_training_forward_and_never_else():
    net, x = model(prior=2.0), noise()
    assert isinstance(net, ExtraLoss)
    net(x)
    assert net.extra_loss() is None
    net.train()(x)
    loss = net.extra_loss()
    scores = net.energy(orbit(net.action, x)).reshape(8, -1)
    torch.testing.assert_close(loss, 2 * prior_loss(scores))
    assert net.extra_loss() is None
    copy.deepcopy(net)
    net.prior = 0.0
    net(x)
    assert net.extra_loss() is None


def test_the_prior_teaches_what_upright_is():
    # Bright above, dark below: which way is up can be seen.
    ramp = torch.linspace(1, -1, 16, dtype=torch.float64)[:, None].expand(16, 16)
    x = ramp + 0.3 * noise(size=16, count=24)
    net = Energy(3).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    action = image_action("C4")
    for _ in range(25):
        optimizer.zero_grad()
        prior_loss(net(orbit(action, x)).reshape(4, -1)).backward()
        optimizer.step()
    fresh = ramp + 0.3 * noise(size=16, count=24, seed=9)
    for index in range(4):
        turned = action.act(index, fresh)
        best = net(orbit(action, turned)).reshape(4, -1).argmax(dim=0)
        assert (best == action.inverse(index)).double().mean() > 0.95


def test_a_prior_that_is_no_weight_is_refused():
    for prior in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected a weight of at least 0"):
            model(prior=prior)


def test_one_pass_of_the_backbone_whatever_the_group():
    net, seen = build_method("canonicalisation", context(group="D4")), []
    net.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    net(noise())
    assert seen == [3]
