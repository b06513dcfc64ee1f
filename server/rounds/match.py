"""Put every site's model into the basis of the global one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from popmi_core.config import MatchConfig
from popmi_core.errors import UpdateError
from popmi_core.matching import Matcher, Symmetry
from popmi_core.matching.moves import LayerTold, told_moves
from server.results import MatchedUpdate, TrainedUpdate


def match_updates(
    updates: Iterable[TrainedUpdate],
    *,
    reference: Mapping[str, Tensor],
    symmetry: Symmetry | None,
    config: MatchConfig,
    quarantine: Callable[[str, str], None],
) -> Iterator[MatchedUpdate]:
    """Yield the updates one by one in the reference's basis; where nothing is to be matched, as they are, saying so.

    An update is asked for when the one before has been handed on: raw and matched models are not all held at once.
    One that cannot be matched is put aside: ``quarantine`` hears the site and why.

    Raises:
        UpdateError: If the reference itself cannot be prepared.
    """
    if config.method == "none" or config.where == "site":
        yield from (_as_it_came(item, config) for item in updates)
        return
    if symmetry is not None and config.method == "permutations":
        symmetry = symmetry.permutations_only()
    matcher = Matcher(reference, symmetry, sweeps=config.sweeps, restarts=config.starts - 1)
    for item in updates:
        try:
            found = matcher.match(item.state, site=item.site)
        except UpdateError as error:
            quarantine(item.site, str(error))
            continue
        moves = told_moves(found, matcher.symmetry)
        yield MatchedUpdate(
            item.site, found.state, item.num_examples, found.gains, found.identity, found.note, item.grams, moves=moves
        )


def _as_it_came(item: TrainedUpdate, config: MatchConfig) -> MatchedUpdate:
    if config.method == "none" or item.report is None:
        return MatchedUpdate(
            item.site,
            item.state,
            item.num_examples,
            note="matching is off",
            grams=item.grams,
            statistics=item.statistics,
        )
    told = item.report
    gains = {layer: math.nan if gain is None else gain for layer, gain in told.gains.items()}
    note = "; ".join(part for part in ("matched at the site", told.match_note) if part)
    return MatchedUpdate(
        item.site, item.state, item.num_examples, gains, told.identity, note, item.grams, item.statistics,
        LayerTold(told.angles, told.moved, told.units),
    )  # fmt: skip
