"""Best orders under groups smaller than all permutations: channels that move in blocks, with a choice inside each.

``scores[i, j]`` is what new entry i gains from old entry j; an order takes old entry ``perm[i]`` as new entry i. Both
groups are wreath products, so the best choice inside a pair of blocks does not depend on the other pairs: solve inside
every pair, then assign blocks by what each pair can reach. Exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.assignment import best_order


def best_grouped_order(scores: Float[Tensor, "width width"], size: int, inner: int) -> Int[Tensor, " width"]:
    """Return the best order of ``size`` groups and of the ``inner`` units inside each (GroupNorm's symmetry).

    Cost: ``size**2`` assignments of ``inner`` units and one of ``size`` groups.

    Raises:
        UpdateError: If the scores are not finite, or not a square of ``size * inner``.
    """
    blocks = _blocks(scores, size, inner)
    inside = torch.stack([best_order(block) for block in blocks.flatten(0, 1)]).reshape(size, size, inner)
    gains = blocks.gather(3, inside[..., None]).sum(dim=(2, 3))
    return _flat(best_order(gains), inside, inner)


def best_field_order(
    scores: Float[Tensor, "width width"], size: int, inner: int, shifts: tuple[tuple[int, ...], ...]
) -> Int[Tensor, " width"]:
    """Return the best order of ``size`` regular fields with one group shift in each.

    ``cost_ij = max over g of <w_i, rho(g) w_j>``; row s of ``shifts`` is the order of a field's ``inner`` channels
    after shift s, so that the result commutes with the group.

    Raises:
        UpdateError: If the scores are not finite, or not a square of ``size * inner``, or the table is not that wide.
    """
    blocks = _blocks(scores, size, inner)
    table = torch.tensor(shifts)
    if table.ndim != 2 or table.shape[1] != inner:
        raise UpdateError(
            f"matching: the table of shifts has shape {tuple(table.shape)}, expected rows of {inner} channels. "
            "Pass the group's own table."
        )
    columns = torch.arange(inner)
    gains, chosen = blocks[:, :, columns, table].sum(dim=-1).max(dim=-1)
    return _flat(best_order(gains), table[chosen], inner)


def _blocks(scores: Tensor, size: int, inner: int) -> Float[Tensor, "size size inner inner"]:
    if tuple(scores.shape) != (size * inner, size * inner):
        raise UpdateError(
            f"matching: scores have shape {tuple(scores.shape)}, expected a square of {size} x {inner} entries. "
            "Compare layers of the same width."
        )
    return scores.reshape(size, inner, size, inner).transpose(1, 2)


def _flat(outer: Tensor, inside: Int[Tensor, "size size inner"], inner: int) -> Int[Tensor, " width"]:
    rows = torch.arange(len(outer))
    return (outer[:, None] * inner + inside[rows, outer]).flatten()
