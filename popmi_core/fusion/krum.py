"""Krum: take the one update that has the closest neighbours (Blanchard et al. 2017, arXiv:1703.02757)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, in_order


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Return the update with the least sum of squared distances to its ``n - faulty - 2`` nearest others.

    num_examples is ignored. Ties go to the site whose name comes first.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or fewer than ``2 * faulty + 3`` sites answered: below
            that the rule's guarantee does not hold.
    """
    ordered = in_order(updates, reference=reference)
    count, needed = len(ordered), 2 * config.faulty + 3
    if count < needed:
        raise UpdateError(
            f"krum with faulty={config.faulty} got {count} updates, expected at least {needed}. "
            "Lower fuse.faulty, wait for more sites, or take fuse.rule = 'median'."
        )
    scores = krum_scores(squared_distances(ordered), faulty=config.faulty)
    best = ordered[int(scores.argmin())]
    weights = {update.site: float(update.site == best.site) for update in ordered}
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in best.state.items()}
    return Fused(state, weights, {"all": f"the update of {best.site} as it is"})


def squared_distances(updates: Sequence[Update]) -> Float[Tensor, "sites sites"]:
    """Return squared distances between whole models, in float64, from differences (no cancellation)."""
    count = len(updates)
    table = torch.zeros(count, count, dtype=torch.float64)
    for name, tensor in updates[0].state.items():
        if not tensor.is_floating_point():
            continue
        flat = [update.state[name].double().flatten() for update in updates]
        for i in range(count):
            for j in range(i):
                table[i, j] += (flat[i] - flat[j]).square().sum()
    return table + table.T


def krum_scores(table: Float[Tensor, "sites sites"], *, faulty: int) -> Float[Tensor, " sites"]:
    """Return each site's sum of squared distances to its ``n - faulty - 2`` nearest others."""
    nearest = table.sort(dim=1).values
    # The first entry of every row is the site's distance to itself.
    return nearest[:, 1 : 1 + len(table) - faulty - 2].sum(dim=1)
