"""A site in the same basis costs an inspection and is left bit for bit; what is refused says who and why."""

import pytest
import torch

from popmi_core.errors import UpdateError
from popmi_core.matching import Matcher, blocks, describe_model, match, random_element
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.descent import worth_turning
from popmi_core.matching.elements import Element, Move, apply
from popmi_core.matching.freedom import StreamKnob
from popmi_core.matching.settle import angles_turned


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def stream_of(symmetry):
    return next(name for name, space in symmetry.spaces.items() if space.kind == "orthogonal")


def with_stream_turned(state, symmetry, size):
    """Return the model with its stream turned, every unit in its place, and the mean angle in degrees."""
    stream = stream_of(symmetry)
    channels = symmetry.spaces[stream].size
    knob, source = StreamKnob(symmetry.spaces[stream], Move()), torch.Generator().manual_seed(3)
    knob.free = size * torch.randn(channels - 1, channels - 1, generator=source, dtype=torch.float64) / channels**0.5
    turn = Element({stream: knob.settled()})
    return apply(state, symmetry, turn, like=state), angles_turned(symmetry, turn)[stream]


def drifted(state, share, seed=0):
    source = torch.Generator().manual_seed(seed)
    noise = {n: torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in state.items()}
    return {name: tensor + share * tensor.std(correction=0) * noise[name] for name, tensor in state.items()}


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"init_values": 1e-5}, {"qkv_bias": False}], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3])
def test_drift_is_left_bit_for_bit(small_vit, changes, share):
    model = small_vit(**changes).float()
    symmetry, reference = describe_model(model), clone(model)
    candidate = drifted(reference, share)

    found = match(candidate, reference, symmetry)

    assert all(found.identity.values())
    assert set(found.gains.values()) == {0.0}
    assert all(torch.equal(found.state[name], tensor) for name, tensor in candidate.items())


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_no_other_start_is_worked_out_for_kin(small_vit, share):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    starts = (pytest.fail("a start was drawn") for _ in range(1))

    found = Matcher(reference, symmetry).match(drifted(reference, share), starts=starts)

    assert found.kin
    assert found.note == "shares its origin with the reference: matched by weights alone"


def test_small_drift_needs_no_assignment(small_vit, monkeypatch):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    monkeypatch.setattr(blocks, "best_order", lambda _: pytest.fail("an order was assigned"))

    assert all(match(drifted(reference, 0.05), reference, symmetry).identity.values())


def test_small_drift_is_certain_after_one_look(small_vit, monkeypatch):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    matcher = Matcher(reference, symmetry)
    monkeypatch.setattr("popmi_core.matching.opm.descend", lambda *_, **__: pytest.fail("a descent was begun"))

    found = matcher.match(drifted(reference, 0.05))

    assert all(found.identity.values())
    assert set(found.gains.values()) == {0.0}
    # What the medoid is chosen by.
    assert found.distances[0] > 0


@pytest.mark.parametrize("kind", ["permutation", "heads", "orthogonal"])
def test_what_moved_in_one_kind_of_space_only_is_not_certain(small_vit, kind, generator):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    planted = apply(reference, symmetry, random_element(symmetry.only(kind), generator))

    found = match(planted, reference, symmetry)

    assert not all(found.identity.values())
    # The very weights come back, in one spelling: float64 rounding through two basis changes.
    one, other = (canonicalise(state, symmetry) for state in (found.state, reference))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-9


@pytest.mark.parametrize(("size", "degrees"), [(0.1, 12), (0.15, 19)])
def test_a_stream_that_training_turned_is_left(small_vit, size, degrees):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    # A turn by which every unit stays nearest to itself, and that would pay by distance alone.
    turned, angle = with_stream_turned(reference, symmetry, size)

    found = match(turned, reference, symmetry)

    assert angle == pytest.approx(degrees, abs=1)
    assert all(found.identity.values())
    assert all(torch.equal(found.state[name], tensor) for name, tensor in turned.items())


@pytest.mark.parametrize("changes", [{}, {"num_heads": 4}], ids=str)
def test_a_site_that_trained_from_the_global_model_is_left_bit_for_bit(small_vit, changes):
    model = small_vit(**changes).float()
    symmetry, reference = describe_model(model), clone(model)
    source = torch.Generator().manual_seed(1)
    # The drift of Adam is of low rank: a basis change inside the heads would take off more than it would of noise.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(5):
        images = torch.randn(8, 3, 32, 32, generator=source)
        target = torch.randint(0, 7, (8,), generator=source)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()

    found = match(clone(model), reference, symmetry)

    assert all(found.identity.values())
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())


def test_matching_again_changes_nothing(small_vit):
    model, other = small_vit(), small_vit(seed=1)
    symmetry, reference = describe_model(model), clone(model)

    once = match(clone(other), reference, symmetry)
    twice = match(once.state, reference, symmetry)

    assert not any(once.identity.values())
    assert all(twice.identity.values())
    assert all(torch.equal(once.state[name], twice.state[name]) for name in reference)


def test_unrelated_models_come_closer_in_every_layer(small_vit):
    model, other = small_vit(), small_vit(seed=1)
    symmetry, reference = describe_model(model), clone(model)

    found = match(clone(other), reference, symmetry)

    assert set(found.gains) == set(found.identity)
    assert min(found.gains.values()) > 0.1


def test_one_matcher_serves_many_sites(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    matcher = Matcher(reference, symmetry)
    candidates = [clone(small_vit(seed=seed)) for seed in (1, 2)]

    for candidate in candidates:
        one, other = matcher.match(candidate), match(candidate, reference, symmetry)
        assert all(torch.equal(one.state[name], other.state[name]) for name in reference)


def test_an_unknown_architecture_is_passed_through_and_said(small_vit):
    state = clone(small_vit())

    found = match(state, state, None)

    assert found.note == "no description of this architecture: plain averaging"
    assert found.gains == {}
    assert all(found.state[name] is tensor for name, tensor in state.items())


def test_a_frozen_backbone_has_nothing_to_match(small_vit):
    model = small_vit()
    head = {name: tensor for name, tensor in clone(model).items() if name.startswith("head")}

    found = match(head, head, describe_model(model))

    assert "frozen and not exchanged" in found.note
    assert set(found.state) == set(head)


def test_of_a_model_that_travels_in_part_the_spaces_that_travel_whole_are_matched(small_vit, outputs):
    """Norms stay at the site: the stream cannot turn, but hidden units and heads are put back."""
    model = small_vit()
    symmetry, whole = describe_model(model), clone(model)
    reference = {name: tensor for name, tensor in whole.items() if "norm" not in name}
    planted = random_element(symmetry.only("permutation", "heads"), torch.Generator().manual_seed(0))
    moved = apply(whole, symmetry, planted)
    # As if the caller had seen more than what travels: a start for the stream is left out.
    start = random_element(symmetry, torch.Generator().manual_seed(1))

    matcher = Matcher(reference, symmetry)
    found = matcher.match({name: moved[name] for name in reference}, starts=[start])

    assert "1 of 5 spaces fixed: not all of their tensors travel" in found.note
    assert set(found.identity) == set(symmetry.spaces) - {"stream"}
    # Rounding of float64.
    assert min(found.gains.values()) > 1 - 1e-12
    torch.testing.assert_close(outputs(model, whole | found.state), outputs(model, whole), rtol=1e-10, atol=1e-11)


def test_chance_alone_never_turns_a_basis():
    one = torch.tensor(1.0)

    assert not worth_turning(one, torch.tensor(0.96), turns=1, numbers=1000, energy=1.0)
    assert worth_turning(one, torch.tensor(0.94), turns=1, numbers=1000, energy=1.0)
    # A quarter of all directions are turns: half of the distance has to go.
    assert not worth_turning(one, torch.tensor(0.6), turns=25, numbers=100, energy=1.0)
    # Between a model and what was trained from it, half of the distance has to go at least.
    assert not worth_turning(one, torch.tensor(0.6), turns=1, numbers=1000, energy=1.0, kin=True)
    assert not worth_turning(one, torch.tensor(0.3), turns=50, numbers=100, energy=1.0, kin=True)
    assert worth_turning(one, torch.tensor(0.2), turns=50, numbers=100, energy=1.0, kin=True)
    # Rounding: nothing of the distance is real.
    assert not worth_turning(torch.tensor(1e-14), torch.tensor(0.0), turns=1, numbers=1000, energy=1.0)


def test_a_missing_tensor_names_site_and_tensor(small_vit):
    model = small_vit()
    reference, candidate = clone(model), clone(model)
    del candidate["head.bias"]

    with pytest.raises(UpdateError, match=r"site msk: 'head.bias' is missing. Check that the site runs"):
        Matcher(reference, describe_model(model)).match(candidate, site="msk")


def test_a_stranger_tensor_is_refused(small_vit):
    model = small_vit()
    reference = clone(model)

    with pytest.raises(UpdateError, match="'extra' is not part of the reference"):
        match(reference | {"extra": torch.zeros(1)}, reference, describe_model(model))


def test_a_wrong_shape_is_refused(small_vit):
    model = small_vit()
    reference = clone(model)

    with pytest.raises(UpdateError, match=r"'head.bias' has shape \(8,\), expected \(7,\)"):
        match(reference | {"head.bias": torch.zeros(8)}, reference, describe_model(model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_refused_on_either_side(small_vit, value):
    model = small_vit()
    symmetry, reference, broken = describe_model(model), clone(model), clone(model)
    broken["blocks.0.mlp.fc1.weight"][0, 0] = value

    with pytest.raises(UpdateError, match=r"site msk: 'blocks.0.mlp.fc1.weight' holds NaN or infinity"):
        Matcher(reference, symmetry).match(broken, site="msk")
    with pytest.raises(UpdateError, match=r"the reference: 'blocks.0.mlp.fc1.weight' holds NaN"):
        match(reference, broken, symmetry)


@pytest.mark.parametrize(("size", "degrees"), [(0.25, 30), (0.5, 53), (1.0, 82), (2.0, 110)])
def test_a_stream_turned_by_more_than_drift_is_turned_back(small_vit, size, degrees):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    turned, angle = with_stream_turned(reference, symmetry, size)

    found = match(turned, reference, symmetry)

    assert angle == pytest.approx(degrees, abs=1)
    assert not found.identity[stream_of(symmetry)]
    one, other = (canonicalise(state, symmetry) for state in (found.state, reference))
    # Heads and stream take turns until the squared distance falls by less than 1e-10 of the squared size.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_units_of_another_scale_get_the_reference_s(factor):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3)
    ).double()
    symmetry, reference = describe_model(plain, image_size=4), clone(plain)
    name = next(iter(symmetry.spaces))
    source = torch.Generator().manual_seed(0)
    scale = factor ** (2 * torch.rand(40, generator=source, dtype=torch.float64) - 1)
    scaled = apply(reference, symmetry, Element({name: Move(scale=scale)}))

    found = match(scaled, reference, symmetry)

    assert not found.identity[name]
    for key, tensor in reference.items():
        torch.testing.assert_close(found.state[key], tensor, rtol=1e-10, atol=1e-12)


def test_starts_that_are_not_looked_at_are_told(small_vit):
    model = small_vit()
    symmetry, reference = describe_model(model), clone(model)
    start = random_element(symmetry, torch.Generator().manual_seed(0))

    found = Matcher(reference, symmetry).match(drifted(reference, 0.05), starts=[start], judge=lambda _: 0.0)

    assert found.note == "shares its origin with the reference: matched by weights alone"
