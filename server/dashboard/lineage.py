"""Where a round's model comes from: the model before, the sites with their weights, the rule that fused them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.store import RoundRow, SiteRow


@dataclass(frozen=True)
class Contribution:
    """One site's part in a model.

    ``share`` is its part of all weights (0 to 1), None for a site whose update is not in the model; ``outcome`` and
    ``reason`` say why not. ``num_examples`` are the images it trained on.
    """

    site: str
    share: float | None
    num_examples: int | None
    outcome: str
    reason: str


@dataclass(frozen=True)
class Lineage:
    """One model's parents; ``parent`` 0 is the run's start, ``chosen`` the candidate that was taken, if any."""

    parent: int
    void: str | None
    contributions: tuple[Contribution, ...]
    chosen: str | None
    rules: Mapping[str, Any]

    @property
    def in_it(self) -> tuple[Contribution, ...]:
        """The sites whose updates are in the model."""
        return tuple(item for item in self.contributions if item.share is not None)


def trace(row: RoundRow, sites: Sequence[SiteRow]) -> Lineage:
    """Return the lineage of a round's model from its notes and from what its sites did."""
    notes = row.notes
    weights = _weights(notes.get("weights"))
    total = math.fsum(weights.values())
    trained = {item.site: item for item in sites if item.phase == "train"}
    lines = []
    for site in sorted({*weights, *trained}):
        did = trained.get(site)
        share = weights[site] / total if site in weights and total > 0 else None
        outcome = did.outcome if did is not None else "ok"
        reason = (did.reason if did is not None else None) or ""
        lines.append(Contribution(site, share, did.num_examples if did else None, outcome, reason))
    void = notes.get("void")
    rules = notes.get("rules")
    return Lineage(
        parent=row.server_round - 1,
        void=None if void is None and row.outcome == "ok" else str(void or row.outcome),
        contributions=tuple(lines),
        chosen=None if notes.get("chosen") is None else str(notes["chosen"]),
        rules=rules if isinstance(rules, Mapping) else {},
    )


def _weights(told: object) -> dict[str, float]:
    if not isinstance(told, Mapping):
        return {}
    return {str(site): float(value) for site, value in told.items() if isinstance(value, int | float) and value >= 0}
