"""Units are put in order front to back: planted orders are found where the descent from the identity gets lost."""

from itertools import pairwise
from threading import Barrier

import pytest
import timm
import torch
from torch import nn

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.errors import UpdateError
from popmi_core.matching import apply, describe_model, match, random_element
from popmi_core.matching.blocks import OrderBlock
from popmi_core.matching.check import perturbed
from popmi_core.matching.descent import Target, descend, embedding_start
from popmi_core.matching.elements import act, compose
from popmi_core.matching.factors import gauge_of
from popmi_core.matching.forward import forward_start


def planted(model, noise, seed=0):
    """A reference, a noisy moved copy in balanced bases, the symmetry and the element that moved it."""
    generator = torch.Generator().manual_seed(seed)
    symmetry = describe_model(model, image_size=32).permutations_only()
    reference = {name: perturbed(name, tensor, generator) for name, tensor in model.double().state_dict().items()}
    element = random_element(symmetry, generator)
    moved = apply(reference, symmetry, element)
    for name, tensor in moved.items():
        if tensor.is_floating_point() and "running" not in name and tensor.numel() > 1:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            moved[name] = tensor + noise * tensor.std() * drawn
    return reference, moved, symmetry, element


def wrong_units(symmetry, planted_moves, found_moves):
    wrong = 0
    for name, move in planted_moves.items():
        perm = compose(move, found_moves[name]).perm if name in found_moves else move.perm
        wrong += int((perm != torch.arange(len(perm))).sum())
    return wrong


MODELS = {
    "mobilenetv3_small_050": {},
    "convnextv2_atto": {"depths": (1, 1, 2, 1), "dims": (16, 16, 24, 32)},
    "popmi_resnet20_gn": {},
}


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_every_planted_unit_is_found(name, noise):
    torch.manual_seed(0)
    reference, moved, symmetry, element = planted(timm.create_model(name, num_classes=4, **MODELS[name]), noise)

    target = Target(reference, symmetry)
    start = forward_start(target, moved)
    found = descend(target, moved, start=start, sweeps=5)

    # Under noise as large as the weights a few thin units need what reads them, which the descent adds.
    assert wrong_units(symmetry, element.moves, start.moves) <= (0 if noise < 1 else 10)
    assert wrong_units(symmetry, element.moves, found.moves) == 0


def test_the_matcher_begins_there_too():
    torch.manual_seed(0)
    reference, moved, symmetry, element = planted(timm.create_model("popmi_resnet20", num_classes=4), 1.0)

    found = match(moved, reference, symmetry)

    assert wrong_units(symmetry, element.moves, found.element.moves) == 0


def test_a_model_in_the_same_order_stays():
    reference, _, symmetry, _ = planted(timm.create_model("popmi_resnet20", num_classes=4), 0.0)

    assert forward_start(Target(reference, symmetry), reference).moves == {}


def test_scales_of_layers_that_share_weights_are_balanced_alike():
    torch.manual_seed(0)
    sizes = (48, 20, 16, 12)
    hidden = [part for ins, outs in pairwise(sizes) for part in (nn.Linear(ins, outs), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(12, 3)).double()
    symmetry = describe_model(model, image_size=4)
    reference = model.state_dict()
    moved = apply(reference, symmetry, random_element(symmetry, torch.Generator().manual_seed(0)))

    matched = match(moved, reference, symmetry)

    # Balanced by turns until a turn changes less than 1e-13.
    for name, tensor in matched.state.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-10, atol=1e-10)
    again = gauge_of(act(moved, symmetry, gauge_of(moved, symmetry)), symmetry)
    for move in again.moves.values():
        torch.testing.assert_close(move.scale, torch.ones_like(move.scale), rtol=0, atol=1e-10)


def test_a_weight_that_is_not_finite_is_refused():
    reference, moved, symmetry, _ = planted(timm.create_model("popmi_resnet20", num_classes=4), 0.0)
    moved["conv1.weight"] = torch.full_like(moved["conv1.weight"], torch.nan)

    with pytest.raises(UpdateError, match="NaN or infinite"):
        forward_start(Target(reference, symmetry), moved)


def test_what_nothing_has_touched_is_not_assigned_again(monkeypatch):
    """Skipping saves assignments and changes no bit of where the descent ends."""
    model, generator = timm.create_model("popmi_resnet20_gn", num_classes=4), torch.Generator().manual_seed(0)
    symmetry = describe_model(model, image_size=32).permutations_only()
    first = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
    second = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in first.items()}
    solved = []
    begin = OrderBlock.begin
    monkeypatch.setattr(OrderBlock, "begin", lambda block, state: solved.append(block.name) or begin(block, state))

    quick = descend(Target(first, symmetry), second, sweeps=9)
    few = len(solved)
    monkeypatch.setattr(Target, "near", lambda target, name: set(target.blocks))
    thorough = descend(Target(first, symmetry), second, sweeps=9)

    assert quick.distances == thorough.distances
    assert all(torch.equal(quick.state[name], tensor) for name, tensor in thorough.state.items())
    assert few < len(solved) - few


def test_orders_found_beside_each_other_are_those_found_one_after_the_other(monkeypatch):
    """Hidden units of two blocks share no tensor: their assignments run at once, and no bit of the end changes."""
    model, generator = timm.create_model("popmi_vit_micro", num_classes=4), torch.Generator().manual_seed(0)
    symmetry = describe_model(model)
    first = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
    second = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in first.items()}
    target, meet = Target(first, symmetry), Barrier(2, timeout=30)
    begin = OrderBlock.begin

    def begin_together(block, state):
        find = begin(block, state)
        return lambda: meet.wait() is not None and find()

    # One sweep over two blocks: each waits for the other and would fail if that one were not begun.
    monkeypatch.setattr(OrderBlock, "begin", begin_together)
    once = descend(target, second, start=embedding_start(target, second), sweeps=1)
    monkeypatch.setattr(OrderBlock, "begin", begin)
    beside = descend(target, second, start=embedding_start(target, second), sweeps=4)
    monkeypatch.setattr(Target, "near", lambda target, name: set(target.blocks))
    alone = descend(target, second, start=embedding_start(target, second), sweeps=4)

    assert once.distances == alone.distances[:1]
    assert beside.distances == alone.distances
    assert all(torch.equal(beside.state[name], tensor) for name, tensor in alone.state.items())
