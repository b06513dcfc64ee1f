"""OT-Fusion: layers are aligned by optimal transport, then averaged (Singh and Jaggi 2020, arXiv:1910.05653)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.permutable import Permutable, Visit, crossed, energies, forward_order, move, permutable
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.transport import Solver, as_move, exact, solve
from popmi_core.fusion.update import Fused, State, Update, in_order, shares
from popmi_core.matching.elements import Move
from popmi_core.matching.statistics import CrossStatistics, Moments
from popmi_core.matching.symmetry import Symmetry


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    statistics: Mapping[str, CrossStatistics] | None = None,
) -> Fused:
    """Transport every model's units to the reference's, exactly (hard), and average by num_examples.

    Layer by layer from the pixels on, with the earlier layers' maps applied to the incoming side. The cost is the
    Euclidean distance of what two units receive (weights, bias, norm), or of their activations where there are
    statistics. With uniform marginals an optimal plan is a permutation.

    A residual stream has one map, found from all layers that write it (the paper averages the maps of the branches
    that meet): from the embedding first, and again from all writers once the branches are aligned. A head is one unit;
    the cost of two heads is that of their channels under the best plan between them, so that no order inside counts.

    Args:
        updates: One per site, each in a basis of its own.
        reference: The model in whose basis the result is.
        symmetry: The architecture's description; only its permutations are used.
        config: Not used by the exact method.
        scorer: Not used.
        statistics: By site, sums over the activations of the reference and of the site's model on the same images
            (see ``cross_statistics``); None compares weights.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If an update is unfit (see ``in_order``), nobody has an example, or a site's statistics are
            missing.
    """
    return transported(updates, exact, "ot_fusion", reference=reference, symmetry=symmetry, statistics=statistics)


def transported(
    updates: Sequence[Update],
    solver: Solver,
    rule: str,
    *,
    reference: State,
    symmetry: Symmetry | None,
    statistics: Mapping[str, CrossStatistics] | None,
) -> Fused:
    """Align every model to the reference with a solver and average; a model that is the reference stays as it is."""
    ordered = in_order(updates, reference=reference)
    weights, group = shares(ordered), permutable(symmetry, set(reference), rule=rule)
    visits = forward_order(group, reference, arriving=True)
    told: dict[str, list[str]] = {space: [] for space in group.spaces}
    aligned = []
    for update in ordered:
        if statistics is not None and update.site not in statistics:
            raise UpdateError(
                f"site {update.site}: no activation statistics came, though other sites' did. Have the site compute "
                f"them (cross_statistics), or run {rule} on weights."
            )
        own = None if statistics is None else statistics[update.site]
        same = all(torch.equal(tensor, reference[name]) for name, tensor in update.state.items())
        maps = {} if same else transport_maps(reference, update.state, group, visits, solver, own)
        for space in group.spaces:
            told[space].append(f"{update.site} {_kept(maps, group, space):.0%}")
        aligned.append(replace(update, state=move(update.state, group, maps)) if maps else update)
    notes = {space: f"stayed in place: {', '.join(sites)}" for space, sites in told.items()}
    compared = "weights" if statistics is None else "activations (by weights where these show nothing)"
    notes = {"all": f"units compared by {compared}", **group.notes, **notes}
    return Fused(weighted_mean(aligned, weights, reference=reference), weights, notes)


def transport_maps(
    reference: State,
    state: State,
    group: Permutable,
    visits: Sequence[Visit],
    solver: Solver,
    statistics: CrossStatistics | None = None,
) -> dict[str, Move]:
    """Return the map of every unit space of a model to the reference's; what stays in place is not among them."""
    maps: dict[str, Move] = {}
    for visit in visits:
        keys = group.keys(visit.space)
        seen = {axis.tensor: state[axis.tensor] for axis in visit.axes}
        arrived = move(seen, group, {key: made for key, made in maps.items() if group.owners[key] != visit.space})
        costs = distances(reference, arrived, group, visit) if statistics is None else {}
        if statistics is not None:
            costs = {p: seen_apart(statistics.moments[key]) for p, key in keys.items() if key in statistics.moments}
            # What does not show in activations is compared by weights.
            costs = {**distances(reference, arrived, group, visit), **costs} if len(costs) < len(keys) else costs
        plans = solve(group.spaces[visit.space], costs, solver, keys)
        for part, plan in plans.items():
            made = as_move(plan)
            maps = {key: old for key, old in maps.items() if key != keys[part]} | ({keys[part]: made} if made else {})
    return maps


def distances(reference: State, state: State, group: Permutable, visit: Visit) -> dict[str, Float[Tensor, "new old"]]:
    """Return the Euclidean distance of what every two units receive, by part of the space."""
    own, others = (energies(model, group, visit.axes) for model in (reference, state))
    return {
        part: (own[part][:, None] + others[part] - 2 * cross).clamp_min(0).sqrt()
        for part, cross in crossed(reference, state, group, visit.axes).items()
    }


def seen_apart(moments: Moments) -> Float[Tensor, "new old"]:
    """Return the Euclidean distance of every two units' activations, root mean square over tokens."""
    own, others = (part.diagonal(dim1=1, dim2=2).flatten() for part in (moments.reference, moments.candidate))
    return ((own[:, None] + others - 2 * moments.cross) / moments.count).clamp_min(0).sqrt()


def _kept(maps: Mapping[str, Move], group: Permutable, space: str) -> float:
    """Return the share of a space's units (weighted, where a map is soft) that is still where it was."""
    shares = []
    for key in group.keys(space).values():
        made, size = maps.get(key), group.units.spaces[key].size
        if made is None:
            shares.append(1.0)
        elif made.rotation is not None:
            shares.append(float(made.rotation.trace()) / size)
        elif made.perm is not None:
            shares.append(float((made.perm == torch.arange(size)).sum()) / size)
    return sum(shares) / len(shares)
