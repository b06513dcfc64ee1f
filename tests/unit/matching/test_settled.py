"""When a descent ends: small models at the last bit, large ones earlier; and it never ends further away."""

import pytest
import torch

from popmi_core.matching import Builder
from popmi_core.matching.descent import Target, descend


@pytest.mark.parametrize(
    ("dtype", "before", "after", "ends"),
    [
        (torch.float64, 100.0, 99.95, False),
        (torch.float64, 100.0, 100.0 - 1e-12, True),
        (torch.float32, 100.0, 99.0, False),
        (torch.float32, 100.0, 99.95, True),
        # A planted copy that is found at once.
        (torch.float32, 0.0, 0.0, True),
    ],
)
def test_large_models_are_not_descended_to_the_last_bit(dtype, before, after, ends):
    state = {"layer.weight": torch.ones(4, 3, dtype=dtype)}
    build = Builder("layer", state)
    build.space("units", "permutation", 4)
    build.linear("layer", writes="units")

    assert Target(state, build.done()).settled(before, after) is ends


def test_a_layer_from_a_space_into_itself_never_moves_away():
    """Seen from one side at a time a swap looks better (4 against 1); made on both it is worse (-5 against 0.5)."""
    reference = {"layer.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)}
    candidate = {"layer.weight": torch.tensor([[0.5, 2.0], [2.0, -5.0]], dtype=torch.float64)}
    build = Builder("layer", reference)
    build.space("units", "permutation", 2)
    build.linear("layer", reads="units", writes="units")
    target = Target(reference, build.done())

    found = descend(target, candidate, sweeps=5)

    assert found.moves == {}
    assert found.distances[-1] == target.distance(candidate)
