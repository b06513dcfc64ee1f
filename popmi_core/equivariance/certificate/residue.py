"""One constrained weight and how far it is off the subspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Residue:
    """One constrained weight: ``error`` is max |rho W - W rho| over the group, ``size`` is max |W|."""

    tensor: str
    kind: str
    error: float
    size: float

    @property
    def relative(self) -> float:
        """Return the error over the size; 0 for a weight that is zero."""
        return self.error / self.size if self.size else self.error


def residue_of(name: str, kind: str, weight: Tensor, turned: Sequence[Tensor]) -> Residue:
    """Return how far a weight is from what each element makes of it."""
    size = float(weight.abs().max())
    # A weight that is another shape after a turn is as far off as it can be.
    errors = [float((one - weight).abs().max()) if one.shape == weight.shape else 2 * size for one in turned]
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
    return Residue(name, kind, worst, size)
