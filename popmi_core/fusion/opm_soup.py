"""OPM-Soup: soups of models that were put into one basis first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from popmi_core.config import FuseConfig
from popmi_core.fusion import greedy_soup
from popmi_core.fusion.average import streamed_mean, weighted_mean
from popmi_core.fusion.greedy_soup import Measure
from popmi_core.fusion.opm import Anchor, Basis, Search, StartsOf
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.shelf import TEMPORARY, Place, shelf_for
from popmi_core.fusion.update import Fused, State, Symmetry, Update, shares


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    anchor: Anchor = "reference",
    sweeps: int = 10,
    restarts: int = 0,
    starts_of: StartsOf | None = None,
    place: Place = TEMPORARY,
) -> Fused:
    """Match every update to one basis (see ``opm.fuse``) and average all weights, weighted by num_examples.

    One aligned model is in memory at a time. A lone site's model is returned as it is.

    Raises:
        ConfigError: If there is no such anchor.
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates, place) as shelf:
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor, search=search, shelf=shelf)
        weights = shares(basis.updates)
        if len(weights) == 1:
            return Fused(weighted_mean(basis.updates, weights, reference=reference), weights)
        states = ((weights[update.site], update.state) for update in basis.aligned())
        return Fused(streamed_mean(states, reference=reference), weights, basis.notes)


def fuse_greedily(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    anchor: Anchor = "reference",
    sweeps: int = 10,
    restarts: int = 0,
    starts_of: StartsOf | None = None,
    place: Place = TEMPORARY,
    measure: Measure = "loss",
) -> Fused:
    """Match every update to one basis (see ``opm.fuse``), then take the greedy soup (see ``greedy_soup.fuse``).

    Memory: all aligned models, as trials come back to them (files: see ``opm.fuse``).

    Raises:
        ConfigError: If there is no such anchor, no scorer, or no accuracy where that is the measure.
        UpdateError: If an update is unfit (see ``in_order``) or no site can compare all models.
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates, place) as shelf:
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor, search=search, shelf=shelf)
        aligned = [shelf.take(update) for update in basis.aligned()]
        fused = greedy_soup.fuse(aligned, reference=reference, config=config, scorer=scorer, measure=measure)
    return replace(fused, notes={**fused.notes, **basis.notes})
