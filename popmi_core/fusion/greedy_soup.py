"""Greedy soup (Wortsman et al. 2022, Model Soups, arXiv:2203.05482, recipe 1)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.score import Scoreboard, Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, in_order

Measure = Literal["loss", "accuracy"]


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    measure: Measure = "loss",
) -> Fused:
    """Take the models in the order of their validation quality; keep each that does not make the soup worse.

    The soup is the uniform average of the kept models. A tie in the order goes to the first site by name; a model
    that leaves the soup as good as it was is kept, as in the paper. Quality is the loss over all sites' validation
    images; the paper's accuracy (``measure="accuracy"``) ties often on few images. With either measure, ``scores``
    holds losses, of single models under the site's name and of trials as ``a+b`` (``a+b (2)`` where a site is called
    so), in the order in which they were scored. Known failure: models in different basins make every soup worse, so
    that one model is kept; the notes say when that happens. A lone model is returned as it is and not scored.

    Cost: 2n - 1 scorings; memory: one model beyond the updates.

    Raises:
        ConfigError: If there is no scorer, or it tells no accuracy where that is the measure.
        UpdateError: If an update is unfit (see ``in_order``) or no site can compare all models.
    """
    ordered = in_order(updates, reference=reference)
    board = Scoreboard(scorer, rule="greedy_soup")
    if len(ordered) == 1:
        site = ordered[0].site
        return Fused(weighted_mean(ordered, {site: 1.0}, reference=reference), {site: 1.0}, chosen=site)
    for update in ordered:
        board.add(update.site, update.state)
    costs = _costs(board, [update.site for update in ordered], measure)
    ranked = [ordered[index] for index in sorted(range(len(ordered)), key=lambda index: costs[index])]
    kept, state, chosen, left_out = _pour(ranked, board, measure, reference)
    return Fused(
        state,
        {update.site: float(update in kept) / len(kept) for update in ordered},
        _notes(kept, left_out, len(ordered)),
        scores=board.table(),
        chosen=chosen,
        regret=board.regret(chosen),
    )


def _pour(
    ranked: Sequence[Update], board: Scoreboard, measure: Measure, reference: State
) -> tuple[list[Update], dict[str, Tensor], str, dict[str, float]]:
    """Return the kept models, their average and its name, and by how much each left out would have made it worse."""
    kept, name, left_out = [ranked[0]], ranked[0].site, {}
    state = weighted_mean(kept, {ranked[0].site: 1.0}, reference=reference)
    for update in ranked[1:]:
        trial = [*kept, update]
        mixed = weighted_mean(trial, {u.site: 1 / len(trial) for u in trial}, reference=reference)
        tried = _name(trial, board)
        board.add(tried, mixed)
        before, after = _costs(board, [name, tried], measure)
        if after <= before:
            kept, state, name = trial, mixed, tried
        else:
            left_out[update.site] = after - before
    return kept, state, name, left_out


def _costs(board: Scoreboard, candidates: Sequence[str], measure: Measure) -> list[float]:
    if measure == "loss":
        return board.losses(*candidates)
    accuracies = board.accuracies(*candidates)
    if any(value != value for value in accuracies):
        raise ConfigError(
            "rule greedy_soup: measure is 'accuracy' but a site scored without one. Report Score.accuracy, or take "
            "measure 'loss'."
        )
    return [-value for value in accuracies]


def _name(updates: Sequence[Update], board: Scoreboard) -> str:
    """Return a name that no candidate has: a site itself may be called ``a+b``."""
    joined, taken = "+".join(update.site for update in updates), board.table()
    numbered = (f"{joined} ({number})" for number in itertools.count(2))
    return next(name for name in itertools.chain([joined], numbered) if name not in taken)


def _notes(kept: Sequence[Update], left_out: dict[str, float], count: int) -> dict[str, str]:
    notes = {site: f"left out: the soup would be worse by {worse:.4g}" for site, worse in left_out.items()}
    if len(kept) == 1:
        said = f"kept one model, {kept[0].site}: no other improves it. Models of different basins need matching first"
    else:
        said = f"soup of {len(kept)} of {count} models: {', '.join(update.site for update in kept)}"
    return {"all": said} | notes
