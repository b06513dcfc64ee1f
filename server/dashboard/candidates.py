"""The candidates for a round's model as a table: who was judged how where, who won, who loses by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.store import CandidateRow, RoundRow


@dataclass(frozen=True)
class CandidateLine:
    """One candidate: its mean validation loss over all judged images (nats) and what each site found."""

    name: str
    taken: bool
    mean: float | None
    cells: tuple[CandidateRow | None, ...]


@dataclass(frozen=True)
class CandidateTable:
    """The newest round's candidates, best first; ``wins``: how often each was taken in the whole run.

    ``regret`` is the most that one site loses (nats) because the choice is not the candidate best for it alone.
    """

    server_round: int
    sites: tuple[str, ...]
    lines: tuple[CandidateLine, ...]
    regret: float | None
    wins: tuple[tuple[str, int], ...]


def candidate_table(rows: Sequence[CandidateRow], rounds: Sequence[RoundRow]) -> CandidateTable | None:
    """Return the table, None for a run in which nothing was judged."""
    if not rows:
        return None
    newest = max(row.server_round for row in rows)
    here = {(row.candidate, row.site): row for row in rows if row.server_round == newest}
    notes = next((item.notes for item in rounds if item.server_round == newest), {})
    sites = tuple(sorted({site for _, site in here}))
    lines = [
        CandidateLine(
            name=name,
            taken=name == notes.get("chosen"),
            mean=_mean([row for (candidate, _), row in here.items() if candidate == name]),
            cells=tuple(here.get((name, site)) for site in sites),
        )
        for name in sorted({candidate for candidate, _ in here})
    ]
    # What a rule compared inside itself (a soup's models) comes after what the round chose from.
    lines.sort(key=lambda line: ("/" in line.name, line.mean is None, line.mean or 0.0, line.name))
    won = Counter(str(item.notes["chosen"]) for item in rounds if item.notes.get("chosen"))
    return CandidateTable(newest, sites, tuple(lines), notes.get("regret"), tuple(won.most_common()))


def _mean(rows: Sequence[CandidateRow]) -> float | None:
    total = sum(row.num_examples for row in rows)
    if not total or any(row.loss is None for row in rows):
        return None
    return sum(row.num_examples * (row.loss or 0.0) for row in rows) / total
