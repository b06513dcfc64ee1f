"""The eight-element group D4 in its isotypic basis: four irreducibles of dimension 1, and one of dimension 2 twice.

A regular field is a function on the group, ``(g f)(h) = f(g^-1 h)``. Its Fourier coefficients are eight numbers, here
called slabs, in the order A1, A2, B1, B2, E00, E01, E10, E11: for the matrix entry ``r_ci`` of each irreducible
``sqrt(d / 8) sum_h r_ci(h) f(h)`` with its dimension d (Serre 1977, Linear Representations of Finite Groups,
sections 2.4 and 6.2). The group mixes the components c of E and leaves the two copies i alone, so a linear map of
fields commutes with it exactly if it is one block on each of A1, A2, B1, B2, and one block on the copies of E that both
components share (Schur's lemma).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.groups.actions import channel_permutation
from popmi_core.groups.point_group import Element, point_group

D4 = point_group("D4")
# Slabs that each have a block of their own; the other four are two copies of the two components of E.
LINES = ("a1", "a2", "b1", "b2")


def plane(element: Element) -> Float[Tensor, "2 2"]:
    """Return E of an element: how it moves the (x, y) plane; float64, entries -1, 0 and 1."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    mirror = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    moved = torch.linalg.matrix_power(turn, element.turns)
    return moved @ mirror if element.flip else moved


def matrix_entries() -> Float[Tensor, "8 8"]:
    """Return the matrix entries of all irreducibles: slabs x elements (in D4's order), -1, 0 and 1; float64."""
    columns = []
    for element in D4.elements:
        flipped, turned = (-1.0) ** element.flip, (-1.0) ** element.turns
        lines = torch.tensor([1.0, flipped, turned, flipped * turned], dtype=torch.float64)
        columns.append(torch.cat([lines, plane(element).flatten()]))
    return torch.stack(columns, dim=1)


def shares() -> Float[Tensor, " 8"]:
    """Return d / 8 for every slab: with its root the change of basis is orthogonal; exact in any float format."""
    return torch.tensor([0.125] * 4 + [0.25] * 4, dtype=torch.float64)


def change_of_basis() -> Float[Tensor, "8 8"]:
    """Return F, orthogonal, float64: ``F f`` are a field's slabs and ``F^T`` takes them back."""
    return matrix_entries() * shares().sqrt()[:, None]


def isotypic_action(element: Element) -> Float[Tensor, "8 8"]:
    """Return how an element moves the slabs of a regular field; float64, block diagonal."""
    basis = change_of_basis()
    return basis @ torch.eye(8, dtype=torch.float64)[channel_permutation(D4, element)] @ basis.T


def act_on_slabs(element: Element, features: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
    """Move features of fields in slabs (channel = slab * copies + copy) by an element; tokens stay where they are."""
    fields = features.unflatten(-1, (8, -1))
    return (isotypic_action(element).to(features) @ fields).flatten(-2)
