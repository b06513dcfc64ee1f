"""What a method trains, and when: nothing, the head, or all; lambda first with a frozen backbone."""

import copy

import pytest
import torch
from orbit_backbones import ORBIT_METHODS, context, noise, shaken
from torch import nn
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the small ViTs)
from popmi_core.errors import ConfigError, ModelError
from popmi_core.groups import image_action
from popmi_core.invariance.build import build_method
from popmi_core.invariance.equiattention import EquiAttention
from popmi_core.invariance.equitune import Equitune
from popmi_core.invariance.method import ExtraLoss, Phase, Phased, phases_of
from popmi_core.invariance.posthoc import PostHoc


def train(model, phase, steps=2):
    """Do what a training harness does: only the phase's parameters move."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(phase.trains(name))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(noise(34, seed=step)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()


def moved(before, after):
    return {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}


@pytest.mark.parametrize("name", ORBIT_METHODS)
@pytest.mark.parametrize("how", ["none", "head", "all"])
def test_shares_sum_to_one_and_every_phase_has_something_to_train(name, how):
    model = build_method(name, context(train=how))
    phases = phases_of(model)
    if how == "none":
        assert phases == ()
        return
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    for phase in phases:
        assert any(phase.trains(parameter) for parameter, _ in model.named_parameters())
    last = {parameter for parameter, _ in model.named_parameters() if phases[-1].trains(parameter)}
    if how == "all":
        assert last == {parameter for parameter, _ in model.named_parameters()}
    else:
        added = {parameter for parameter, _ in model.named_parameters() if not parameter.startswith("backbone.")}
        assert last == added | {"backbone.head.weight", "backbone.head.bias"}


def test_lambda_equitune_trains_lambda_alone_and_then_all():
    model = build_method("lambda-equitune", context("resnet"))
    first, second = model.phases()
    start = copy.deepcopy(model)
    train(model, first)
    # Not even the statistics of a BatchNorm move in a frozen backbone.
    assert moved(start, model) == {name for name in model.state_dict() if name.startswith("score.")}
    middle = copy.deepcopy(model)
    train(model, second)
    after = moved(middle, model)
    assert {"score.out.weight", "score.hidden.weight", "backbone.fc.weight", "backbone.conv1.0.weight"} <= after
    assert any("running_mean" in name for name in after)


@pytest.mark.parametrize(("how", "later"), [("all", "all"), ("head", "head")])
def test_equiattention_trains_its_attention_alone_first_if_asked(how, later):
    one = EquiAttention(context("resnet").backbone(), image_action("C4"), train=how)
    assert [(phase.name, phase.share) for phase in one.phases()] == [(later, 1.0)]
    model = EquiAttention(context("resnet").backbone(), image_action("C4"), train=how, warm_share=0.25)
    first, second = model.phases()
    assert [(phase.name, phase.share) for phase in (first, second)] == [("attention", 0.25), (later, 0.75)]
    start = copy.deepcopy(model)
    train(model, first)
    # Keys move from the second step on: the queries that weigh them start at zero. Their bias moves never, as it adds
    # the same to the scores of all copies.
    attention = {"query.weight", "query.bias", "key.weight"}
    assert moved(start, model) - {"key.bias"} == attention
    middle = copy.deepcopy(model)
    train(model, second)
    after = moved(middle, model)
    assert attention | {"backbone.fc.weight"} <= after
    assert ("backbone.conv1.0.weight" in after) == (how == "all")


def test_equiattention_with_nothing_to_train_has_no_phase_and_a_wrong_share_is_refused():
    backbone = context("resnet").backbone()
    assert EquiAttention(backbone, image_action("C4"), train="none", warm_share=0.2).phases() == ()
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"warm_share is .*, expected a part of the epochs"):
            EquiAttention(backbone, image_action("C4"), warm_share=share)


def test_lambda_equitune_with_the_head_alone_leaves_the_features():
    model = build_method("lambda-equitune", context("resnet", train="head"))
    names = [phase.name for phase in model.phases()]
    assert names == ["lambda", "head"]
    start = copy.deepcopy(model)
    for phase in model.phases():
        train(model, phase)
    rest = {name for name in moved(start, model) if not name.startswith("score.")}
    assert rest == {"backbone.fc.weight", "backbone.fc.bias"}


@pytest.mark.parametrize("way", ["mean", "score", "attention"])
def test_head_only_training_moves_the_head_and_what_is_added(way):
    model = build_method(f"posthoc-{way}", context("resnet", train="head"))
    (phase,) = model.phases()
    start = copy.deepcopy(model)
    train(model, phase)
    changed = moved(start, model)
    assert {"backbone.fc.weight", "backbone.fc.bias"} <= changed
    assert all(name.startswith(("backbone.fc.", "merge.")) for name in changed)
    assert (way == "mean") == (not any(name.startswith("merge.") for name in changed))


def test_a_frozen_backbone_is_in_evaluation_mode_and_a_free_one_is_not():
    model = build_method("equitune-logits", context("resnet"))
    model.backbone.requires_grad_(False)
    model.backbone.fc.requires_grad_(True)
    assert not model.train().backbone.training
    model.backbone.requires_grad_(True)
    assert model.train().backbone.training
    assert not model.eval().backbone.training


def test_a_model_without_phases_trains_all_in_one():
    assert phases_of(nn.Linear(2, 2)) == (Phase("all", 1.0, ("",)),)
    assert not isinstance(nn.Linear(2, 2), Phased)
    assert not isinstance(nn.Linear(2, 2), ExtraLoss)


def test_phases_trains_by_prefix():
    phase = Phase("head", 1.0, ("head.", "score."))
    assert phase.trains("score.out.weight")
    assert not phase.trains("backbone.head.weight")


class Headless(nn.Module):
    """A classifier that does not say where its head is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))


def test_a_backbone_without_a_known_head_is_refused_where_it_is_needed():
    action = image_action("C4")
    assert Equitune(Headless(), action).phases()[0].trained == ("",)
    with pytest.raises(ModelError, match="Headless does not say which module is its classifier"):
        Equitune(Headless(), action, train="head").phases()
    with pytest.raises(ModelError, match="Headless does not say which module is its classifier"):
        PostHoc(Headless(), action, "mean")


@pytest.mark.parametrize("name", ["lambda-equitune", "equiattention", "posthoc-attention", "canonicalisation"])
def test_a_state_goes_into_a_second_copy(name):
    first, second = shaken(build_method(name, context())), build_method(name, context(seed=1))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.eval()(noise()), first.eval()(noise()))
