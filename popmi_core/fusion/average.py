"""Weighted average of parameters, FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast, in_order, shares


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average every tensor, weighted by num_examples and summed in float64 in the order of the sites' names.

    ``sum_k n_k w_k / sum_k n_k``; BatchNorm statistics are averaged like weights. A lone site's model is returned
    as it is, bit for bit.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    weights = shares(ordered)
    return Fused(weighted_mean(ordered, weights, reference=reference), weights)


def weighted_mean(ordered: Sequence[Update], weights: Mapping[str, float], *, reference: State) -> dict[str, Tensor]:
    """Return ``sum_k weights[k] w_k`` in the reference's number formats, summed in float64 in the order given.

    One update alone is returned as it is, bit for bit.
    """
    if len(ordered) == 1:
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in ordered[0].state.items()}
    state = {}
    for name, like in reference.items():
        total = torch.zeros(like.shape, dtype=torch.float64)
        for update in ordered:
            # One pass, no copy in float64: the memory this takes is one tensor's.
            total.add_(update.state[name], alpha=weights[update.site])
        state[name] = cast(total, like)
    return state


def streamed_mean(states: Iterable[tuple[float, State]], *, reference: State) -> dict[str, Tensor]:
    """Return ``sum_k weight_k w_k`` in the reference's number formats; states are taken one at a time.

    The sum itself is float64: twice a float32 model.
    """
    totals = {name: torch.zeros(like.shape, dtype=torch.float64) for name, like in reference.items()}
    for weight, state in states:
        for name, total in totals.items():
            total.add_(state[name], alpha=weight)
    return {name: cast(totals[name], like) for name, like in reference.items()}
