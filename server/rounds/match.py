"""Put every site's model into the basis of the global one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from popmi_core.config import MatchConfig
from popmi_core.matching import Matcher, ViTSymmetry
from server.results import MatchedUpdate, TrainedUpdate


def match_updates(
    updates: Sequence[TrainedUpdate],
    *,
    reference: Mapping[str, Tensor],
    symmetry: ViTSymmetry | None,
    config: MatchConfig,
) -> list[MatchedUpdate]:
    """Return the updates in the reference's basis; where nothing is to be matched, as they are, saying so."""
    if config.method == "none":
        return [MatchedUpdate(item.site, item.state, item.num_examples, note="matching is off") for item in updates]
    matcher = Matcher(reference, symmetry, sweeps=config.sweeps)
    matched = []
    for item in updates:
        found = matcher.match(item.state, site=item.site)
        matched.append(
            MatchedUpdate(item.site, found.state, item.num_examples, found.gains, found.identity, found.note)
        )
    return matched
