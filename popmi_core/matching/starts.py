"""Where the descent may begin: the moves that activations call for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.matching.assignment import best_order
from popmi_core.matching.blocks import solve_order
from popmi_core.matching.elements import Element, Move
from popmi_core.matching.procrustes import stream_rotation
from popmi_core.matching.statistics import CrossStatistics, as_scores
from popmi_core.matching.symmetry import Space, Symmetry


def start_from(statistics: CrossStatistics, symmetry: Symmetry) -> Element:
    """Return each space's best move as activations see it, one of ``Matcher.match(starts=...)``.

    Orders are assignments of correlations, rotations Procrustes solutions of covariances. Heads are paired by the sum
    of their canonical correlations, which no basis inside changes; the maps inside are left to the descent, and spaces
    that do not show in activations stay.

    Raises:
        UpdateError: If a score is NaN or infinite.
    """
    moves: dict[str, Move] = {}
    for key in statistics.moments:
        name, _, part = key.partition(":")
        space = symmetry.spaces[name]
        scores = as_scores(statistics, space, part)
        if space.kind == "orthogonal":
            moves[name] = Move(rotation=stream_rotation(scores))
        elif part:
            moves[name] = Move(best_order(head_scores(scores, space)))
        else:
            moves[name] = Move(solve_order(space, scores))
    return Element(moves)


def head_scores(scores: Float[Tensor, "width width"], space: Space) -> Float[Tensor, "heads heads"]:
    """Return the sum of singular values of every pair of heads."""
    blocks = scores.reshape(space.size, space.inner, space.size, space.inner).transpose(1, 2)
    return torch.linalg.svdvals(blocks).sum(-1)
