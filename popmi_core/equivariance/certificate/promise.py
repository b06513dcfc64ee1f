"""What the server checks of every update: that a model which promises equivariance is still on the subspace.

Models that store free coefficients (PREA, the octic transformer) cannot leave it: any numbers of the right names and
shapes are a point of it, so that names and shapes are the whole check, and it costs nothing. Models that store dense
weights (regular fields expanded, ``field_group``) can: there max |rho W - W rho| is looked at, tensor by tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from popmi_core.equivariance.certificate.algebra import group_of
from popmi_core.equivariance.certificate.residues import residues
from popmi_core.errors import UpdateError
from popmi_core.groups import PointGroup

TOLERANCE = 1e-4
"""Relative; float32 training and averaging of expanded weights drift by 1e-6, a tampered weight by far more."""


class Promise:
    """A model's promise to respect ``group``; ``dense``: whether its stored weights could break it."""

    def __init__(self, model: nn.Module, group: PointGroup, *, dense: bool) -> None:
        self.group, self.dense = group, dense
        self._model = copy.deepcopy(model)

    def check(self, state: Mapping[str, Tensor], where: str) -> None:
        """Look at an update whose names and shapes are known to be right.

        Raises:
            UpdateError: If a weight has left the subspace; site, tensor, residue and tolerance are named.
        """
        if not self.dense:
            return
        for found in residues(self._holding(state), self.group):
            if not found.relative <= TOLERANCE:
                raise UpdateError(
                    f"{where}: '{found.tensor}' is not {self.group.name}-equivariant: max |rho W - W rho| is "
                    f"{found.relative:.2g} of its size, expected at most {TOLERANCE:g}. The site trains something else "
                    "than the symmetric model, or the weights were changed on their way; check its version."
                )

    def verdict(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what a model's card says of its weights: group, how they are kept, the largest residue."""
        found = residues(self._holding(state), self.group)
        worst = max(found, key=lambda one: one.relative, default=None)
        residue = 0.0 if worst is None else worst.relative
        return {
            "group": self.group.name,
            "stored": "dense" if self.dense else "free coefficients",
            "constrained": len(found),
            "residue": float(f"{residue:.3g}"),
            "tensor": worst.tensor if worst is not None and residue else None,
            "tolerance": TOLERANCE,
            "holds": bool(residue <= TOLERANCE),
        }

    def _holding(self, state: Mapping[str, Tensor]) -> nn.Module:
        # What does not travel (frozen weights, counters) is the server's own.
        self._model.load_state_dict(dict(state), strict=False)
        return self._model


def promise_of(model: nn.Module) -> Promise | None:
    """Return what the model promises; None for one without a group."""
    group = group_of(model)
    if group is None or len(group) == 1:
        return None
    return Promise(model, group, dense=hasattr(model, "field_group"))
