"""Aligned RegMean: models put into one basis first, then fused layer by layer so that answers are kept.

RegMean: Jin et al. 2023, arXiv:2212.09849.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion import regmean
from popmi_core.fusion.opm import Anchor, Basis, Search, StartsOf
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.shelf import TEMPORARY, Place, shelf_for
from popmi_core.fusion.update import Fused, State, Symmetry, Update

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
    place: Place = TEMPORARY,
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
    with shelf_for(updates, place) as shelf:
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
