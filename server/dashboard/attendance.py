"""Who took part in which round, why not, and what it cost each site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.dashboard.blocks import NOTHING, SiteTable
from server.store.schema import SITE_OUTCOMES, SITE_PHASES

CODES = {"ok": "✓", "stopped": "S", "late": "L", "unreachable": "U", "failed": "F", "quarantined": "Q"}
_SEVERITY = {"ok": 0, "stopped": 1, "late": 2, "unreachable": 3, "failed": 4, "quarantined": 5}


@dataclass(frozen=True)
class Cell:
    """One site in one round: ``code`` on the page, ``outcome`` and ``reason`` in words, of the worse phase."""

    code: str
    outcome: str
    reason: str
    phase: str


@dataclass(frozen=True)
class SiteCost:
    """One site over the whole run; bytes and seconds are sums, loss and epsilon the newest."""

    site: str
    rounds_ok: int
    rounds_all: int
    num_examples: int | None
    seconds: float | None
    bytes_up: int | None
    bytes_down: int | None
    epsilon: float | None
    train_loss: float | None
    epsilon_limit: float | None = None
    delta: float | None = None

    @property
    def spent(self) -> float | None:
        """The share of the privacy budget that is spent, None without a budget."""
        return None if self.epsilon is None or not self.epsilon_limit else self.epsilon / self.epsilon_limit


@dataclass(frozen=True)
class Attendance:
    """One site over all rounds: how often which outcome; ``spells`` of one trouble as (first, last, outcome)."""

    site: str
    counts: Mapping[str, int]
    spells: tuple[tuple[int, int, str], ...]


def cells_of(table: SiteTable, shown: Sequence[int]) -> dict[str, dict[int, Cell]]:
    """Return the cells of these rounds by site; where two phases tell of one round, the worse counts."""
    if not shown:
        return {}
    reasons = {
        (row.site, row.server_round, row.phase): row.reason or ""
        for row in table.faults
        if shown[0] <= row.server_round <= shown[-1]
    }
    cells: dict[str, dict[int, Cell]] = {}
    for place, site in enumerate(table.names):
        for number in shown:
            if number >= table.outcomes.shape[2]:
                continue
            told = [
                (SITE_OUTCOMES[code], phase)
                for phase, code in zip(SITE_PHASES, table.outcomes[:, place, number], strict=True)
                if code != NOTHING
            ]
            if told:
                outcome, phase = max(told, key=lambda item: _SEVERITY[item[0]])
                reason = reasons.get((site, number, phase), "")
                cells.setdefault(site, {})[number] = Cell(CODES[outcome], outcome, reason, phase)
    return cells


def attendance_of(table: SiteTable, names: Iterable[str]) -> tuple[Attendance, ...]:
    """Return every site's presence over the whole run; rounds are counted from 1."""
    rank = np.array([_SEVERITY[outcome] for outcome in SITE_OUTCOMES])
    back = {severity: outcome for outcome, severity in _SEVERITY.items()}
    found = []
    for site in names:
        if site not in table.names:
            found.append(Attendance(site, {}, ()))
            continue
        codes = table.outcomes[:, table.names.index(site), 1:]
        worst = np.where(codes == NOTHING, NOTHING, rank[codes]).max(axis=0, initial=NOTHING)
        counts = {back[value]: int((worst == value).sum()) for value in sorted(set(worst.tolist()) - {NOTHING})}
        found.append(Attendance(site, counts, tuple(_spells(worst, back))))
    return tuple(found)


def costs_of(
    table: SiteTable, names: Iterable[str], joined: Mapping[str, Mapping[str, Any]], limit: float | None
) -> tuple[SiteCost, ...]:
    """Return every site's sums; the budget is the run's, as noted when the site joined."""
    return tuple(_cost(table, name, joined.get(name, {}), limit) for name in names)


def _cost(table: SiteTable, site: str, told: Mapping[str, Any], limit: float | None) -> SiteCost:
    budget = {"epsilon_limit": told.get("epsilon_limit") or limit, "delta": told.get("delta")}
    if site not in table.names:
        return SiteCost(site, 0, 0, None, None, None, None, None, None, **budget)
    place = table.names.index(site)
    train = table.outcomes[0, place]

    def total(name: str) -> float | None:
        values = table.sums[name][:, place]
        return None if np.isnan(values).all() else float(np.nansum(values))

    def newest(values: Any) -> float | None:
        known = np.flatnonzero(~np.isnan(values))
        return float(values[known[-1]]) if known.size else None

    def whole(value: float | None) -> int | None:
        return None if value is None else round(value)

    return SiteCost(
        site=site,
        rounds_ok=int((train == SITE_OUTCOMES.index("ok")).sum()),
        rounds_all=int((train != NOTHING).sum()),
        num_examples=whole(newest(table.sums["num_examples"][0, place])),
        seconds=total("seconds"),
        bytes_up=whole(total("bytes_up")),
        bytes_down=whole(total("bytes_down")),
        epsilon=newest(table.trained["epsilon"][place]),
        train_loss=newest(table.trained["train_loss"][place]),
        **budget,
    )


def _spells(worst: Any, back: Mapping[int, str]) -> Iterable[tuple[int, int, str]]:
    edges = np.flatnonzero(np.diff(worst)) + 1
    for first, last in zip([0, *edges], [*edges, worst.size], strict=True):
        if first < last and worst[first] > 0:
            yield int(first) + 1, int(last), back[int(worst[first])]
