"""Around a cycle of models every move is undone: no basis is left over."""

import pytest
import torch

from popmi_core.config import FuseConfig
from popmi_core.fusion import Update, fuse
from popmi_core.fusion.opm import Basis
from popmi_core.matching import describe_model, match, random_element
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.elements import apply


def copies(model, symmetry, generator, *, noise):
    """Return three copies of a model in three bases."""
    states = []
    for _ in range(3):
        near = {n: t + noise * t.std(correction=0) * torch.randn_like(t) for n, t in model.state_dict().items()}
        states.append(apply(near, symmetry, random_element(symmetry, generator)))
    return states


def test_moves_between_copies_compose_to_none_around_a_cycle(small_vit, generator):
    model = small_vit()
    symmetry = describe_model(model)
    states = copies(model, symmetry, generator, noise=0.0)
    legs = list(zip(states, states[1:] + states[:1], strict=True))
    # Each found without the others.
    moves = [match(state, reference, symmetry).element for state, reference in legs]

    around = states[0]
    for move, (_, reference) in zip(moves, legs, strict=True):
        around = apply(around, symmetry, move, like=reference)

    one, other = canonicalise(around, symmetry), canonicalise(states[0], symmetry)
    # Rounding through three basis changes, heads up to a condition of a few hundred.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-8


@pytest.mark.parametrize("anchor", ["reference", "medoid", "mean_of_others"])
def test_models_put_into_one_basis_need_no_move_between_any_two(small_vit, generator, anchor):
    model = small_vit()
    symmetry = describe_model(model)
    states = copies(model, symmetry, generator, noise=0.1)
    updates = [Update(f"site{index}", state, 10 + index) for index, state in enumerate(states)]

    aligned = list(Basis.choose(updates, reference=states[0], symmetry=symmetry, anchor=anchor).aligned())

    for one in aligned:
        for other in aligned:
            assert all(match(one.state, other.state, symmetry).identity.values())


def test_the_fused_model_does_not_depend_on_whose_basis_counts(small_vit, generator, outputs):
    model = small_vit()
    symmetry = describe_model(model)
    states = copies(model, symmetry, generator, noise=0.0)
    updates = [Update(f"site{index}", state, 1) for index, state in enumerate(states)]

    found = [
        outputs(model, fuse("opm", updates, reference=reference, symmetry=symmetry, config=FuseConfig()).state)
        for reference in states
    ]

    # Copies of one model fuse to its function, in whatever basis.
    for one in found:
        torch.testing.assert_close(one, outputs(model, states[0]), rtol=1e-8, atol=1e-8)
