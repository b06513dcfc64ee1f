"""Learned maps: the midpoint gets better, and what comes out is an exact element of the group."""

import pytest
import torch
from timm import create_model
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the study models)
from popmi_core.errors import UpdateError
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.check import describe_model
from popmi_core.matching.elements import Element, Move, act, apply, random_element
from popmi_core.matching.freedom import Freedom, HeadKnob, OrderKnob, StreamKnob, cayley, complement, sinkhorn
from popmi_core.matching.learn import between, learn_element
from popmi_core.matching.opm import match
from popmi_core.matching.probes import probe_images
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.matching.symmetry import Space

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
ORDERS = ("kept", "straight-through", "sinkhorn")


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair(small_vit, generator):
    """Two models that agree but for noise and a random move, and images with the first one's classes."""
    model = small_vit(**TINY)
    symmetry = describe_model(model)
    # Copies: what a test loads into the model must not write into the states.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noisy = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in state.items()}
    images = probe_images((3, 16, 16), 96, generator)
    with torch.no_grad():
        targets = model(images.double()).argmax(1)
    element = random_element(symmetry, generator)
    return model, symmetry, state, apply(noisy, symmetry, element), images, targets


def near_start(symmetry, state, candidate, images, model):
    """Return where activations put the candidate, before any descent."""
    return start_from(cross_statistics(model, state, candidate, symmetry, images), symmetry)


def midpoint_loss(model, symmetry, state, candidate, element, images, targets):
    first, second = canonicalise(state, symmetry), act(canonicalise(candidate, symmetry), symmetry, element)
    with torch.no_grad():
        logits = torch.func.functional_call(model, between(first, second, 0.5), (images.double(),))
    return float(functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("orders", ORDERS)
def test_the_midpoint_gets_better(pair, orders, generator):
    model, symmetry, state, candidate, images, targets = pair
    start = near_start(symmetry, state, candidate, images, model)
    before = midpoint_loss(model, symmetry, state, candidate, start, images, targets)

    learned = learn_element(
        model, state, candidate, symmetry, images, targets,
        start=start, steps=60, learning_rate=0.02, batch_size=32, generator=generator, loss="supervised", orders=orders,
    )  # fmt: skip

    after = midpoint_loss(model, symmetry, state, candidate, learned.element, images, targets)
    assert after < 0.8 * before
    assert learned.after <= learned.before
    assert len(learned.losses) == 60


def test_no_class_is_needed(pair, generator):
    model, symmetry, state, candidate, images, _ = pair
    start = near_start(symmetry, state, candidate, images, model)

    learned = learn_element(
        model, state, candidate, symmetry, images, None, start=start, steps=60, learning_rate=0.02, generator=generator
    )

    with torch.no_grad():
        ends = [torch.func.functional_call(model, one, (images.double(),)) for one in (state, candidate)]
    wanted = (sum(ends) / 2).softmax(1)
    floor = float(-(wanted * wanted.log()).sum(1).mean())
    before, after = (
        midpoint_loss(model, symmetry, state, candidate, element, images, wanted) - floor
        for element in (start, learned.element)
    )
    # What is above the ensemble's own entropy goes away.
    assert after < 0.5 * before


@pytest.mark.parametrize("orders", ORDERS)
def test_the_candidate_computes_what_it_computed(pair, orders, generator):
    model, symmetry, state, candidate, images, _ = pair
    start = near_start(symmetry, state, candidate, images, model)

    element = learn_element(
        model, state, candidate, symmetry, images, None, start=start, steps=20, generator=generator, orders=orders
    ).element
    moved = apply(candidate, symmetry, element, like=state)

    assert element is not start
    model.load_state_dict(candidate)
    with torch.no_grad():
        before = model(images.double())
        model.load_state_dict(moved)
        after = model(images.double())
    # Float64 rounding through other but equal matrices.
    assert float((after - before).norm() / before.norm()) < 1e-10


def test_a_start_that_cannot_be_beaten_is_returned_as_it_is(pair, generator):
    model, symmetry, state, _, images, _ = pair
    start = Element()

    # Both ends are the same model, and nothing is nearer to their mean logits than that model.
    learned = learn_element(
        model, state, state, symmetry, images, None, start=start, steps=5, learning_rate=0.5, generator=generator
    )

    assert learned.element is start
    assert learned.after == learned.before


def test_the_same_generator_gives_the_same_map(pair):
    model, symmetry, state, candidate, images, _ = pair

    one, other = (
        learn_element(
            model, state, candidate, symmetry, images, None,
            start=Element(), steps=5, generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    )  # fmt: skip

    assert one.losses == other.losses
    assert torch.equal(one.element.moves["stream"].rotation, other.element.moves["stream"].rotation)


def test_nothing_that_was_given_is_changed(pair, generator):
    model, symmetry, state, candidate, images, _ = pair
    before = {name: tensor.clone() for name, tensor in candidate.items()}

    learn_element(model, state, candidate, symmetry, images, None, start=Element(), steps=2, generator=generator)

    assert all(torch.equal(tensor, before[name]) for name, tensor in candidate.items())
    assert next(model.parameters()).dtype == torch.float64
    assert next(model.parameters()).requires_grad


@pytest.mark.parametrize("size", [1, 2, 7, 63])
def test_cayley_gives_a_rotation_that_keeps_the_ones(size):
    knob = StreamKnob(Space("stream", "orthogonal", size + 1), Move())
    knob.free = normal(size, size)

    rotation = knob.settled().rotation
    identity = torch.eye(size + 1, dtype=torch.float64)

    # Rounding of products of orthogonal matrices of this size.
    torch.testing.assert_close(rotation @ rotation.T, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.sum(1), torch.ones(size + 1, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(cayley(knob.free) @ cayley(-knob.free), torch.eye(size).double(), rtol=0, atol=1e-12)


def test_the_complement_of_the_ones_is_orthonormal():
    basis = complement(9)

    torch.testing.assert_close(basis.T @ basis, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(basis.sum(0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-14)


def test_sinkhorn_is_doubly_stochastic_and_cold_ones_are_orders():
    scores = normal(6, 6)

    # Columns are normalised last; rows converge linearly.
    warm = sinkhorn(scores, rounds=200)
    torch.testing.assert_close(warm.sum(0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(warm.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)
    # The best order is better than the next one by far more than the temperature.
    cold = sinkhorn(scores / 0.002, rounds=500)
    # Cold ones converge slowly: the error falls as one over the rounds.
    assert float((cold - cold.round()).abs().max()) < 1e-2


@pytest.mark.parametrize("orders", ["straight-through", "sinkhorn"])
def test_scores_of_units_get_a_gradient(orders):
    knob = OrderKnob(normal(5, 5), Move(), Space("units", "permutation", 5, rescalable=True), orders)

    move = knob.move(0.5)
    (move.rotation * normal(5, 5, seed=1)).sum().backward()

    assert float(knob.parameters()[0].grad.abs().sum()) > 0
    if orders == "straight-through":
        # Nothing but an order goes into the forward pass.
        torch.testing.assert_close(move.rotation.detach().round(), move.rotation.detach(), rtol=0, atol=1e-6)


def test_an_untrained_order_knob_says_what_the_start_says():
    begun = Move(torch.tensor([2, 0, 1]), scale=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    knob = OrderKnob(torch.eye(3), begun, Space("units", "permutation", 3, rescalable=True), "straight-through")

    settled, moved = knob.settled(), knob.move(0.0)

    assert settled.perm.tolist() == [2, 0, 1]
    torch.testing.assert_close(settled.scale, begun.scale, rtol=0, atol=0)
    torch.testing.assert_close(moved.scale, begun.scale.float())


@pytest.mark.parametrize("orders", ["straight-through", "sinkhorn"])
def test_learned_orders_of_groups_keep_their_groups(orders):
    knob = OrderKnob(normal(8, 8), Move(), Space("norm", "grouped", 4, 2), orders)

    settled, forward = knob.settled().perm, knob.move(0.5).rotation.detach().round().argmax(1)

    # Units that were in one group are in one group again, whatever the scores say.
    for order in (settled, forward):
        assert sorted(order.tolist()) == list(range(8))
        assert all(a // 2 == b // 2 for a, b in order.reshape(4, 2).tolist())


@pytest.mark.parametrize("orders", ["straight-through", "sinkhorn"])
def test_learned_orders_of_fields_commute_with_the_group(orders):
    shifts = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

    order = OrderKnob(normal(6, 6), Move(), Space("fields", "fields", 2, 3, shifts=shifts), orders).settled().perm

    turn = torch.tensor([1, 2, 0, 4, 5, 3])
    assert torch.equal(order[turn], turn[order])


def test_orders_of_groups_are_learned(generator):
    model = create_model("popmi_resnet20_gn", num_classes=3).double().eval()
    symmetry = describe_model(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # An untrained head says next to nothing.
    state["fc.weight"] *= 100
    candidate = apply(state, symmetry, random_element(symmetry, generator))
    # All but two groups in place: those are left to the images.
    start = match(candidate, state, symmetry).element
    order = start.moves["stem"].perm
    start = Element({**start.moves, "stem": Move(torch.cat([order[2:4], order[:2], order[4:]]))})

    learned = learn_element(
        model, state, candidate, symmetry, probe_images((3, 28, 28), 64, generator), None,
        start=start, steps=20, learning_rate=0.02, batch_size=32, generator=generator,
    )  # fmt: skip

    assert learned.after < learned.before
    moved = apply(candidate, symmetry, learned.element, like=state)
    model.load_state_dict(candidate)
    images = normal(2, 3, 28, 28)
    with torch.no_grad():
        before = model(images)
        model.load_state_dict(moved)
        after = model(images)
    # Float64 sums in another order.
    assert float((after - before).norm() / before.norm()) < 1e-10


def test_orthogonal_parts_of_heads_stay_orthogonal():
    knob = HeadKnob(Space("heads", "heads", 2, 3, {"a": "orthogonal", "b": "linear", "c": "fixed"}), Move())
    knob.logs["a"] = normal(2, 3, 3)

    maps = knob.settled().maps

    assert set(maps) == {"a", "b"}
    torch.testing.assert_close(maps["a"] @ maps["a"].mT, torch.eye(3).double().expand(2, 3, 3), rtol=0, atol=1e-12)
    assert torch.equal(maps["b"], torch.eye(3).double().expand(2, 3, 3))


def test_a_start_of_any_kind_is_where_the_knobs_begin(pair, generator):
    _, symmetry, state, candidate, _, _ = pair
    start = random_element(symmetry, generator)
    ends = [canonicalise(one, symmetry) for one in (state, candidate)]

    settled = Freedom(symmetry, *ends, start=start, orders="kept").settled()

    one, other = (act(ends[1], symmetry, element) for element in (start, settled))
    for name, tensor in one.items():
        # Untouched knobs are identities to rounding.
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-12)


def test_the_place_on_the_line_is_the_share_of_the_candidate(pair, generator):
    model, symmetry, state, candidate, images, targets = pair

    learned = learn_element(
        model, state, candidate, symmetry, images, targets,
        start=Element(), steps=1, batch_size=96, generator=generator, loss="supervised", span=(0.0, 0.0),
    )  # fmt: skip

    with torch.no_grad():
        alone = functional.cross_entropy(torch.func.functional_call(model, state, (images.double(),)), targets)
    # Nothing of the candidate: the reference's own loss, in float32, over the nine tenths not held out.
    assert learned.losses[0] == pytest.approx(float(alone), rel=0.1)
    assert learned.after == learned.before


@pytest.mark.parametrize(("kinds", "learned"), [(("permutation",), True), (("permutation", "heads"), False)])
def test_orders_are_learned_where_nothing_else_turns(pair, kinds, learned):
    _, symmetry, state, candidate, _, _ = pair
    ends = [canonicalise(one, symmetry) for one in (state, candidate)]

    freedom = Freedom(symmetry.only(*kinds), *ends, start=Element(), orders=None)

    assert ("blocks.0.mlp" in freedom.knobs) is learned


def test_where_only_orders_move_and_are_kept_there_is_nothing_to_learn(pair, generator):
    model, symmetry, state, candidate, images, _ = pair
    start = Element()

    learned = learn_element(
        model, state, candidate, symmetry.only("permutation"), images, None,
        start=start, steps=3, generator=generator, orders="kept",
    )  # fmt: skip

    assert learned.element is start
    assert learned.losses == ()


def test_missing_classes_are_refused(pair, generator):
    model, symmetry, state, candidate, images, targets = pair
    options = {"start": Element(), "generator": generator, "loss": "supervised"}
    with pytest.raises(UpdateError, match="learned map: 96 images have no classes, expected one each"):
        learn_element(model, state, candidate, symmetry, images, None, **options)
    with pytest.raises(UpdateError, match="learned map: 96 images have 5 classes"):
        learn_element(model, state, candidate, symmetry, images, targets[:5], **options)


def test_no_images_are_refused(pair, generator):
    model, symmetry, state, candidate, images, _ = pair
    with pytest.raises(UpdateError, match="learned map: there is no image to learn from"):
        learn_element(model, state, candidate, symmetry, images[:0], None, start=Element(), generator=generator)


def test_an_infinite_loss_is_refused(pair, generator):
    model, symmetry, state, candidate, images, targets = pair
    broken = candidate | {"head.bias": torch.full_like(candidate["head.bias"], torch.nan)}
    with pytest.raises(UpdateError, match="learned map: the loss of step 0 is nan, expected a finite one"):
        learn_element(
            model, state, broken, symmetry, images, targets, start=Element(), generator=generator, loss="supervised"
        )
