"""Weighted average of parameters, FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from popmi_core.config import FuseConfig
from popmi_core.fusion.update import Fused, State, Update, cast, in_order, shares
from popmi_core.matching import ViTSymmetry


def fuse(
    updates: Sequence[Update], *, reference: State, symmetry: ViTSymmetry | None = None, config: FuseConfig
) -> Fused:
    """Average every tensor, weighted by num_examples and summed in float64 in the order of the sites' names.

    ``sum_k n_k w_k / sum_k n_k``; BatchNorm statistics are averaged like weights. A lone site's model is returned
    as it is, bit for bit.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    weights = shares(ordered)
    if len(ordered) == 1:
        return Fused({name: tensor.clone() for name, tensor in ordered[0].state.items()}, weights)
    state = {}
    for name, like in reference.items():
        total = torch.zeros(like.shape, dtype=torch.float64)
        for update in ordered:
            total += update.state[name].double() * weights[update.site]
        state[name] = cast(total, like)
    return Fused(state, weights)
