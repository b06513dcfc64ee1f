"""Rotations: the orthogonal map closest to a cross-covariance (Schoenemann 1966, doi:10.1007/BF02289451)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def polar(cross: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
    """Return the orthogonal ``R = U V^T`` that maximises ``trace(R^T cross)``, from ``cross = U S V^T``.

    With ``cross = A^T B`` this minimises ``|A - B R^T|_F``. Not unique where ``cross`` has no full rank.
    """
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def stream_rotation(cross: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Return the best orthogonal R with ``R 1 = 1``, the ones that pass LayerNorm.

    Both the vector of ones and its complement are kept: the cross-covariance is projected onto the complement and a
    weight on ``1 1^T`` larger than its norm makes the polar factor hold the ones exactly.
    """
    dim = len(cross)
    ones = torch.ones(dim, 1, dtype=cross.dtype) / dim**0.5
    inside = cross - ones @ (ones.T @ cross)
    inside = inside - (inside @ ones) @ ones.T
    return polar(inside + (1 + inside.norm()) * ones @ ones.T)
