"""Git Re-Basin by activation matching (Ainsworth, Hayase and Srinivasa 2023, arXiv:2209.04836, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.merge_many import match_weights
from popmi_core.fusion.permutable import Permutable, crossed, move, permutable, tell, traced, untraced
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.transport import as_move, assign, solve
from popmi_core.fusion.update import Fused, State, Update, in_order, shares
from popmi_core.matching.elements import Move
from popmi_core.matching.statistics import CrossStatistics, Moments
from popmi_core.matching.symmetry import Symmetry

# A unit that is silent on all images has no correlation; this share of the mean variance keeps the division finite.
_SILENT = 1e-12


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    statistics: Mapping[str, CrossStatistics] | None = None,
    correlated: bool = True,
) -> Fused:
    """Permute every model to the reference by how its units correlate on the sites' images; average by num_examples.

    Each space that shows in activations is one linear assignment: on correlations (Li et al. 2016, arXiv:1511.07543),
    or on the inner products of section 3.1, which is least squares on the activations as they are. What does not show
    (the query and key channels inside a head) is matched by weights with all else held.

    Args:
        updates: One per site, each in a basis of its own.
        reference: The model whose activations the statistics compare with; the result is in its basis.
        symmetry: The architecture's description; only its permutations are used.
        config: Not used: the method has no setting.
        scorer: Not used.
        statistics: By site, sums over both models' activations on the same images (see ``cross_statistics``).
        correlated: Compare units by correlation; else by inner product, where loud units count more.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If an update is unfit (see ``in_order``), nobody has an example, or a site's statistics are
            missing.
    """
    ordered = in_order(updates, reference=reference)
    weights, group = shares(ordered), permutable(symmetry, set(reference), rule="git_rebasin_activations")
    aligned = []
    for update in ordered:
        if statistics is None or update.site not in statistics:
            raise UpdateError(
                f"site {update.site}: no activation statistics came, which rule git_rebasin_activations matches by. "
                "Have the site compute them (cross_statistics), or take rule 'git_rebasin'."
            )
        own, state = statistics[update.site], traced(update.state, group)
        aligned.append(match_activations(reference, state, group, own, correlated=correlated))
    moved = [replace(update, state=untraced(state)) for update, state in zip(ordered, aligned, strict=True)]
    return Fused(weighted_mean(moved, weights, reference=reference), weights, tell(list(weights), aligned, group))


def match_activations(
    reference: State, state: State, group: Permutable, statistics: CrossStatistics, *, correlated: bool = True
) -> dict[str, Tensor]:
    """Return the state with every unit where the reference has the one it goes with most."""
    moves: dict[str, Move] = {}
    shown: set[str] = set()
    for name, space in group.spaces.items():
        keys = group.keys(name)
        seen = {part: statistics.moments[key] for part, key in keys.items() if key in statistics.moments}
        costs = {part: -(correlation(sums) if correlated else sums.cross) for part, sums in seen.items()}
        if costs:
            shown.add(name)
            plans = solve(space, costs, assign, keys)
            moves |= {keys[part]: made for part, plan in plans.items() if (made := as_move(plan)) is not None}
    found = move(state, group, moves)
    generator = torch.Generator().manual_seed(0)
    found = match_weights(reference, found, group, generator, starts=1, held=shown)
    for name in shown:
        for part, key in group.keys(name).items():
            if key not in statistics.moments and part and group.spaces[name].maps[part] != "fixed":
                found = _inside(reference, found, group, key)
    return found


def _inside(reference: State, state: State, group: Permutable, key: str) -> dict[str, Tensor]:
    """Order the channels inside every head by weights; the heads stay where the activations have put them."""
    axes = [axis for axis in group.axes(group.owners[key]) if axis.space == key]
    (scores,) = crossed(reference, state, group, axes).values()
    head = torch.arange(len(scores)) // group.spaces[group.owners[key]].inner
    made = as_move(assign((-scores).masked_fill(head[:, None] != head, torch.inf).numpy()))
    return dict(state) if made is None else move(state, group, {key: made})


def correlation(moments: Moments) -> Float[Tensor, "width width"]:
    """Return the correlation of every unit of the reference (rows) with every unit of the candidate."""
    spreads = []
    for own in moments.own():
        variance = own.diagonal(dim1=1, dim2=2).flatten()
        least = _SILENT * variance.mean().clamp_min(torch.finfo(variance.dtype).tiny)
        spreads.append(variance.clamp_min(least).sqrt())
    return moments.covariance() / torch.outer(*spreads)
