"""Put every site's model into the basis of the global one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from popmi_core.config import MatchConfig
from popmi_core.matching import ViTSymmetry, match
from server.results import MatchedUpdate


def match_update(
    site: str,
    state: Mapping[str, Tensor],
    num_examples: int,
    *,
    reference: Mapping[str, Tensor],
    symmetry: ViTSymmetry | None,
    config: MatchConfig,
) -> MatchedUpdate:
    """Return the update in the reference's basis, or as it is where nothing is to be matched, and say so."""
    if config.method == "none":
        return MatchedUpdate(site, state, num_examples, note="matching is off")
    if symmetry is None:
        return MatchedUpdate(site, state, num_examples, note="plain: no symmetry description for this architecture")
    matched = match(state, reference, symmetry, sweeps=config.sweeps)
    return MatchedUpdate(site, matched.state, num_examples, matched.gains, matched.identity, matched.note)
