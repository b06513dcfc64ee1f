"""OPM-Soup: soups, and RegMean, of models that were put into one basis first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion import greedy_soup, regmean
from popmi_core.fusion.average import streamed_mean, weighted_mean
from popmi_core.fusion.greedy_soup import Measure
from popmi_core.fusion.opm import Anchor, Basis, Search, StartsOf
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.shelf import shelf_for
from popmi_core.fusion.update import Fused, State, Symmetry, Update, shares

# A site's name and its aligned model -> the Gram matrices of that model on the site's images.
GramsOf = Callable[[str, State], Mapping[str, Tensor]]


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
) -> Fused:
    """Match every update to one basis (see ``opm.fuse``) and average all weights, weighted by num_examples.

    One aligned model is in memory at a time. A lone site's model is returned as it is.

    Raises:
        ConfigError: If there is no such anchor.
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates) as shelf:
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
    measure: Measure = "loss",
) -> Fused:
    """Match every update to one basis (see ``opm.fuse``), then take the greedy soup (see ``greedy_soup.fuse``).

    Memory: all aligned models, as trials come back to them (files: see ``opm.fuse``).

    Raises:
        ConfigError: If there is no such anchor, no scorer, or no accuracy where that is the measure.
        UpdateError: If an update is unfit (see ``in_order``) or no site can compare all models.
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates) as shelf:
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor, search=search, shelf=shelf)
        aligned = [shelf.take(update) for update in basis.aligned()]
        fused = greedy_soup.fuse(aligned, reference=reference, config=config, scorer=scorer, measure=measure)
    return replace(fused, notes={**fused.notes, **basis.notes})


def fuse_regmean(
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
    grams_of: GramsOf | None = None,
) -> Fused:
    """Match every update to one basis (see ``opm.fuse``), then take RegMean (see ``regmean.fuse``).

    Gram matrices belong to a basis: those that came with an update hold only where matching moved nothing.
    ``grams_of`` computes them on the aligned model, at the site.

    Raises:
        ConfigError: If there is no such anchor.
        UpdateError: If an update is unfit (see ``in_order``), a model was moved and there is no ``grams_of``, or a
            Gram matrix is unfit (see ``regmean.fuse``).
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates) as shelf:
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor, search=search, shelf=shelf)
        found = (_with_grams(update, grams_of, len(basis.updates)) for update in basis.aligned())
        aligned = [shelf.take(update) for update in found]
        fused = regmean.fuse(aligned, reference=reference, config=config)
    return replace(fused, notes={**fused.notes, **basis.notes})


def _with_grams(update: Update, grams_of: GramsOf | None, count: int) -> Update:
    if grams_of is not None:
        return replace(update, grams=grams_of(update.site, update.state))
    if count > 1 and not update.grams:
        raise UpdateError(
            f"site {update.site}: matching moved its model, so its Gram matrices are of another basis. Compute them on "
            "the aligned model (grams_of), or match at the site before they are computed."
        )
    return update
