"""The best single model, by the sites' validation loss: what fusing must beat."""

from __future__ import annotations

from collections.abc import Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.score import Scoreboard, Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, in_order


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Return the model with the lowest loss over all sites' validation images; ties go to the first site by name.

    A lone model needs no comparison and is not scored.

    Raises:
        ConfigError: If there is no scorer.
        UpdateError: If an update is unfit (see ``in_order``) or no site can compare all models.
    """
    ordered = in_order(updates, reference=reference)
    board = Scoreboard(scorer, rule="best_single")
    if len(ordered) == 1:
        site = ordered[0].site
        return Fused(weighted_mean(ordered, {site: 1.0}, reference=reference), {site: 1.0}, chosen=site)
    for update in ordered:
        board.add(update.site, update.state)
    losses = board.losses(*(update.site for update in ordered))
    best = ordered[losses.index(min(losses))]
    return Fused(
        weighted_mean([best], {best.site: 1.0}, reference=reference),
        {update.site: float(update is best) for update in ordered},
        {"all": f"the model of {best.site} as it is"},
        scores=board.table(),
        chosen=best.site,
        regret=board.regret(best.site),
    )
