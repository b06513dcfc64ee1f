"""The isotypic basis of D4: irreducibles are representations, and the change of basis is orthogonal and intertwines."""

import itertools

import pytest
import torch

from popmi_core.groups import channel_permutation
from popmi_core.groups.octic import D4, act_on_slabs, change_of_basis, isotypic_action, matrix_entries, plane

# Sums of eight float64 numbers of size one.
ROUNDING = {"rtol": 0, "atol": 1e-14}


def test_the_plane_is_a_representation():
    for first, second in itertools.product(D4.elements, D4.elements):
        assert torch.equal(plane(second) @ plane(first), plane(second.compose(first)))


def test_the_lines_are_representations():
    entries = matrix_entries()[:4]
    for first, second in itertools.product(D4.elements, D4.elements):
        product = entries[:, D4.index(first)] * entries[:, D4.index(second)]
        assert torch.equal(entries[:, D4.index(second.compose(first))], product)


def test_the_change_of_basis_is_orthogonal():
    basis = change_of_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64), **ROUNDING)


@pytest.mark.parametrize("element", D4.elements, ids=str)
def test_slabs_move_by_signs_and_by_the_plane_on_each_copy(element):
    expected = torch.block_diag(
        *[matrix_entries()[line, D4.index(element)][None, None] for line in range(4)],
        torch.kron(plane(element), torch.eye(2, dtype=torch.float64)),
    )
    torch.testing.assert_close(isotypic_action(element), expected, **ROUNDING)


@pytest.mark.parametrize("element", D4.elements, ids=str)
def test_moving_slabs_is_moving_the_field(element):
    fields = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slabs = (change_of_basis() @ fields).flatten(-2)
    moved = change_of_basis() @ fields[:, channel_permutation(D4, element)]
    torch.testing.assert_close(act_on_slabs(element, slabs), moved.flatten(-2), **ROUNDING)
