"""One round looked at closely: matching, candidates, similarity, rotation, calibration, confusion.

Each part shows the round that was picked, or the newest that has something to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from server.dashboard.candidates import CandidateTable, candidate_table
from server.dashboard.held import Held
from server.store import DetailRow, MatchRow, RunReader, columns
from server.store.schema import Candidate, Detail, MatchLayer


@dataclass(frozen=True)
class MatchTable:
    """The matching of a round: layers down, sites across."""

    server_round: int
    sites: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatchRow | None, ...]], ...]

    def most(self, name: str) -> float:
        """Return the largest size of ``gain``, ``angle`` or ``moved`` in the table; 0 without any."""
        values = [
            abs(value) for _, row in self.rows for item in row if (value := getattr(item, name, None)) is not None
        ]
        return float(max(values, default=0.0))

    def has(self, name: str) -> bool:
        """Say whether any cell tells it."""
        return any(getattr(item, name, None) is not None for _, row in self.rows for item in row)


@dataclass(frozen=True)
class Told:
    """One kind of detail in one round and split: the global value, and that of each site which told one."""

    kind: str
    server_round: int
    split: str
    whole: Mapping[str, Any] | None
    sites: Mapping[str, Mapping[str, Any]]

    def of(self, scope: str | None) -> tuple[str, Mapping[str, Any]] | None:
        """Return name and value of a scope; of the global one, else the first site, where it told nothing."""
        if scope in self.sites:
            return str(scope), self.sites[str(scope)]
        if self.whole is not None:
            return "global", self.whole
        return next(iter(self.sites.items()), None)


class RoundLook:
    """What the record tells of single rounds.

    Args:
        reader: The record.
        held: The run.
        picked: The round to show; None: for each part the newest that has it.
    """

    def __init__(self, reader: RunReader, held: Held, picked: int | None) -> None:
        self._reader, self._held, self.picked = reader, held, picked
        self._id = held.run.id

    @cached_property
    def match(self) -> MatchTable | None:
        """How well every layer of every site was matched."""
        number = self.picked if self.picked is not None else self._newest(MatchLayer)
        return None if number is None else match_table(self._reader.matches(self._id, number))

    @cached_property
    def candidates(self) -> CandidateTable | None:
        """What the round chose from."""
        number = self.picked if self.picked is not None else self._newest(Candidate)
        if number is None:
            return None
        return candidate_table(self._reader.candidates(self._id, number), self._held.rounds)

    def told(self, kind: str, split: str | None = None) -> Told | None:
        """Return a kind of detail; of several splits the one asked for, else the validation images."""
        number = self.picked if self.picked is not None else self._newest(Detail, Detail.kind == kind)
        if number is None:
            return None
        return told_of(self._reader.details(self._id, kind=kind, server_round=number), split)

    @cached_property
    def classes(self) -> Mapping[str, Told]:
        """How many images of which class every site has, by split; told when a site joins."""
        rows = self._reader.details(self._id, kind="classes", server_round=0)
        splits = sorted({row.split for row in rows}, key=lambda item: (item != "train", item != "val", item))
        return {
            split: told for split in splits if (told := told_of([row for row in rows if row.split == split], split))
        }

    def _newest(self, table: Any, *conditions: Any) -> int | None:
        if not self._reader.has(table):
            return None
        with self._reader.connection() as connection:
            return columns.newest_round(connection, table, self._id, self._held.done, *conditions)


def match_table(matches: Sequence[MatchRow]) -> MatchTable | None:
    """Return the newest matching among rows as a table, None without any."""
    if not matches:
        return None
    newest = max(row.server_round for row in matches)
    found = {(row.layer, row.site): row for row in matches if row.server_round == newest}
    sites = tuple(sorted({site for _, site in found}))
    layers = list(dict.fromkeys(layer for layer, _ in found))
    return MatchTable(newest, sites, tuple((name, tuple(found.get((name, site)) for site in sites)) for name in layers))


def told_of(rows: Sequence[DetailRow], split: str | None) -> Told | None:
    """Return details of one kind and round; None without any."""
    splits = {row.split for row in rows}
    if not splits:
        return None
    chosen = split if split in splits else "val" if "val" in splits else min(splits)
    here = {row.scope: row.value for row in rows if row.split == chosen}
    whole = here.pop("global", None)
    return Told(rows[0].kind, rows[0].server_round, chosen, whole, dict(sorted(here.items())))
