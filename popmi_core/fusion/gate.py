"""The never-worse gate: candidates are scored on the sites' own validation images and the best one is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import ModelError, UpdateError
from popmi_core.fusion.dispatch import fuse
from popmi_core.fusion.score import Score, Scoreboard, Scorer
from popmi_core.fusion.shelf import TEMPORARY, Place
from popmi_core.fusion.update import Fused, State, Symmetry, Update

PLAIN = "average"
# Losses of float32 models that are the same but for the order of their sums differ by less.
_ROUNDING = 1e-6


def never_worse(
    rules: Sequence[str],
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig | None = None,
    scorer: Scorer | None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    place: Place = TEMPORARY,
) -> Fused:
    """Return the candidate with the lowest loss over all sites' validation images; ties, to
    rounding, go to the plain average.

    The plain average of the updates as they came is always a candidate, so that no choice is worse than it on the
    images that were scored. A rule that cannot work with these updates is left out and noted. Images on which a rule
    itself chose (soups) are the same as the gate's: its score is then a little too good.

    ``scores`` holds every candidate's loss at every site, ``regret`` the most that one site loses because the choice
    is not the candidate best for it alone. The scorer hears a rule's name, or ``rule/candidate`` for what a rule
    itself compares. Memory: two models beyond the updates and what a rule needs.

    Args:
        rules: Names of candidates beside the plain average, in the order in which they are tried.
        updates: One per site, as they came.
        reference: The global model the round started from.
        symmetry: What ``describe_model`` said about the architecture.
        config: Settings of the rules.
        scorer: Scores a candidate at every site.
        options: Further keyword arguments of single rules, by rule.
        place: Where models that a rule moved wait (see ``dispatch.fuse``).

    Raises:
        ConfigError: If there is no such rule or no scorer.
        UpdateError: If even the plain average fails, or no site scores a candidate.
    """
    board = Scoreboard(scorer, rule="gate")
    known: dict[str, Any] = {"reference": reference, "symmetry": symmetry, "config": config, "place": place}
    best = fuse(PLAIN, updates, **known)
    board.add(PLAIN, best.state)
    chosen, notes = PLAIN, {}
    for name in dict.fromkeys(rule.replace("-", "_") for rule in rules):
        if name == PLAIN:
            continue
        given, asked = (options or {}).get(name, {}), _named(scorer, name)
        try:
            fused = fuse(name, updates, scorer=asked, **known, **given)
            board.add(name, fused.state)
            better = _beats(board, name, chosen)
        except (UpdateError, ModelError) as error:
            notes[f"gate.{name}"] = f"left out: {error}"
            continue
        if better:
            best, chosen = fused, name
    return _told(best, chosen, board, notes)


def _beats(board: Scoreboard, name: str, chosen: str) -> bool:
    """Whether a candidate is better than the chosen one and than the plain average.

    Both, because sites may drop out: each pair is compared on the sites that scored these two.
    """
    pairs = [board.losses(name, other) for other in (chosen, PLAIN)]
    return all(own < least and not math.isclose(own, least, rel_tol=_ROUNDING) for own, least in pairs)


def _told(best: Fused, chosen: str, board: Scoreboard, notes: Mapping[str, str]) -> Fused:
    told = {}
    for name in board.table():
        loss = board.losses(name)[0]
        said = "infinite" if math.isinf(loss) else f"{loss:.4f} nats"
        told[f"gate.{name}"] = f"validation loss {said}" + (", taken" if name == chosen else "")
    # A candidate may be scored and still be left out: by sites that scored no other.
    everything = {**best.notes, **told, **notes}
    return Fused(best.state, best.weights, everything, board.table(), chosen, board.regret(chosen))


def _named(scorer: Scorer | None, rule: str) -> Scorer | None:
    if scorer is None:
        return None
    inner = scorer

    def score(candidate: str, state: Mapping[str, Tensor]) -> Mapping[str, Score]:
        return inner(f"{rule}/{candidate}", state)

    return score
