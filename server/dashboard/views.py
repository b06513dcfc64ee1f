"""Turn a held run into what a page or a report prints; no HTML here, and nothing is read before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from server.dashboard.attendance import Attendance, Cell, SiteCost, attendance_of, cells_of, costs_of
from server.dashboard.blocks import Block
from server.dashboard.charts import Chart, charts_of, label, splits_by, styles_of
from server.dashboard.health import State, judge, time_left
from server.dashboard.held import Held, hold
from server.dashboard.looks import RoundLook, Told
from server.dashboard.rotation import rotation_charts
from server.dashboard.running import running_charts
from server.store import EventRow, MetricRow, RoundRow, RunReader, SiteRow, columns
from server.store.looks import awaited_sites

ROUNDS_SHOWN = 40


@dataclass(frozen=True)
class FigureTable:
    """The newest round's figures of one split: names down, scopes across."""

    split: str
    server_round: int
    scopes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MetricRow | None, ...]], ...]

    @property
    def title(self) -> str:
        """The split, or both where the external set stands beside the test images; for ``split_name``."""
        both = self.split == "test" and "external" in self.scopes
        return "test+external" if both else self.split


class RunView:
    """Everything a run's page shows, part by part.

    Args:
        held: The run.
        reader: Where to read what belongs to one round only.
        split: Which images the curves are of; None or unknown: the split with most figures.
        now: Seconds since 1970 UTC.
        picked: The round to look at closely; None: the newest.
        upto: The last round of the table of participation; None: the newest.
        scope: Whose rotation, calibration and confusion to show; None: all sites together.
    """

    def __init__(
        self,
        held: Held,
        reader: RunReader,
        *,
        split: str | None,
        now: float,
        picked: int | None = None,
        upto: int | None = None,
        scope: str | None = None,
    ) -> None:
        self.held, self.run, self.rounds = held, held.run, held.rounds
        self._reader, self._now, self._upto, self.scope = reader, now, upto, scope
        counts = {
            name: sum(int((~np.isnan(block.values)).sum()) for key, block in held.figures.items() if key[0] == name)
            for name in {key[0] for key in held.figures} - {"external"}
        }
        found = splits_by(counts) or ("test",)
        self.split = split if split in found else found[0]
        self.splits = tuple(sorted(found, key=lambda item: (item == "train", item != "val", item)))
        self.site_names = tuple(sorted({*held.run.sites, *held.sites.names}))
        scopes = {scope for block in held.figures.values() for scope in block.scopes}
        self.styles = styles_of({*self.site_names, *scopes})
        self.look = RoundLook(reader, held, picked)

    @cached_property
    def joined(self) -> Mapping[str, Mapping[str, Any]]:
        """What each site told of itself when it joined."""
        rows = self._reader.details(self.run.id, kind="joined", server_round=0)
        return {row.scope: row.value for row in rows}

    @cached_property
    def state(self) -> State:
        """How the run is now."""
        joined = self.joined if self.run.status == "waiting" else None
        recent = self.held.sites.recent(self.run.rounds_done)
        awaited = awaited_sites(self._reader, self.run)
        return judge(self.run, self.rounds, recent, self._now, joined=joined, awaited=awaited)

    @cached_property
    def time_left(self) -> float | None:
        """An estimate in seconds, None where there is none."""
        return time_left(self.run, self.rounds, self.state)

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The figures of the split in view, the external set beside ``test``, then what training itself reports."""
        blocks = {name: block for (split, name), block in self.held.figures.items() if split == self.split}
        if self.split == "test":
            for (split, name), block in self.held.figures.items():
                if split == "external":
                    blocks[name] = _beside(blocks.get(name, Block()), block)
        if self.split != "train":
            for name, values in self.held.sites.trained.items():
                known = values[:, : self.held.done + 1]
                blocks[name] = Block(self.held.sites.names, known, ~np.isnan(known).all(axis=0))
        return blocks

    def charts_since(self, since: int) -> tuple[Chart, ...]:
        """Return the curves, from a round on."""
        return charts_of(self.blocks, self.styles, since=since)

    @cached_property
    def charts(self) -> tuple[Chart, ...]:
        """Every curve, whole."""
        return self.charts_since(0)

    @cached_property
    def shells(self) -> tuple[Chart, ...]:
        """Every curve without its points."""
        return self.charts_since(self.held.done + 1)

    def running(self, since: int = 0) -> tuple[Chart, ...]:
        """Return the curves of the rounds themselves: weights, seconds by phase, megabytes."""
        return running_charts(self.held, self.styles, since)

    def rotation(self, told: Told) -> tuple[Chart, ...]:
        """Return what the model answers by angle."""
        return rotation_charts(told, self.styles)

    @cached_property
    def figures(self) -> tuple[FigureTable, ...]:
        """The newest figures of every split, with bounds."""
        newest: dict[str, int] = {}
        for (split, _), block in self.held.figures.items():
            seen = np.flatnonzero(block.present)
            newest[split] = max(newest.get(split, 0), int(seen[-1]) if seen.size else 0)
        with self._reader.connection() as connection:
            rows = {
                number: columns.figures_of_round(connection, self.run.id, number) for number in set(newest.values())
            }
        return figure_tables({split: rows[number] for split, number in newest.items()}, newest)

    @cached_property
    def shown(self) -> tuple[int, ...]:
        """The rounds of the table of participation."""
        known = [item.server_round for item in self.rounds if item.server_round > 0]
        upto = self._upto if self._upto is not None else max(known, default=0)
        return tuple(number for number in known if number <= upto)[-ROUNDS_SHOWN:]

    @cached_property
    def cells(self) -> Mapping[str, Mapping[int, Cell]]:
        """Sites and rounds of that table."""
        return cells_of(self.held.sites, self.shown)

    @cached_property
    def attendance(self) -> tuple[Attendance, ...]:
        """Who took part over the whole run."""
        return attendance_of(self.held.sites, self.site_names)

    @property
    def faults(self) -> tuple[SiteRow, ...]:
        """What went wrong, newest first."""
        return self.held.sites.faults[::-1]

    @cached_property
    def costs(self) -> tuple[SiteCost, ...]:
        """Every site over the whole run."""
        limit = (self.run.config.get("privacy") or {}).get("target_epsilon")
        return costs_of(self.held.sites, self.site_names, self.joined, limit)

    @property
    def private(self) -> bool:
        """Whether its sites train under a privacy budget, also before the first epsilon is told."""
        promised = bool(self.run.config.get("privacy"))
        return promised or any(item.epsilon is not None or item.epsilon_limit for item in self.costs)

    @property
    def bytes_moved(self) -> int:
        """Bytes up and down, all sites and rounds."""
        return sum((item.bytes_up or 0) + (item.bytes_down or 0) for item in self.costs)

    @cached_property
    def events(self) -> tuple[EventRow, ...]:
        """The newest lines of the diary, newest first."""
        return self._reader.events(self.run.id, last=100)[::-1]

    @property
    def best(self) -> MetricRow | None:
        """The best round."""
        return best_round(self.held)

    @property
    def last_done(self) -> RoundRow | None:
        """The newest round that has ended and whose length is known."""
        return next((row for row in reversed(self.rounds) if row.seconds_total is not None), None)

    def chart(self, name: str) -> Chart | None:
        """Return a chart by its metric, None when the run has no such figure."""
        return next((item for item in self.shells if item.id == name), None)

    def headline(self, name: str) -> MetricRow | None:
        """Return the newest global figure of the split in view."""
        return self._figure(self.split, "global", name)

    def external(self, name: str) -> MetricRow | None:
        """Return the newest figure on the external test set."""
        return self._figure("test", "external", name) or self._figure("external", "external", name)

    def _figure(self, split: str, scope: str, name: str) -> MetricRow | None:
        for table in self.figures:
            if table.split == split and scope in table.scopes:
                place = table.scopes.index(scope)
                return next((row[place] for title, row in table.rows if title == name), None)
        return None


def view_run(reader: RunReader, run_id: int, *, split: str | None, now: float) -> RunView:
    """Read one run from its record; ``split`` picks the curves."""
    return RunView(hold(reader, run_id), reader, split=split, now=now)


def best_round(held: Held) -> MetricRow | None:
    """Return the best global AUROC on validation images: choosing by test images would flatter the run."""
    block = held.figures.get(("val", "auroc"))
    if block is None or "global" not in block.scopes:
        return None
    values = block.values[block.scopes.index("global")]
    if np.isnan(values).all():
        return None
    best = int(np.nanargmax(values))
    return MetricRow(best, "global", "val", "auroc", float(values[best]), None, None)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as ``(dotted key, text)`` lines."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append((f"{prefix}{key}", "not set" if value is None else text))
    return lines


def figure_tables(rows: Mapping[str, tuple[MetricRow, ...]], newest: Mapping[str, int]) -> tuple[FigureTable, ...]:
    """Return a table a split of its newest round's rows; the external set stands beside the sites' test images."""
    tables = []
    for split in sorted(newest, key=lambda item: (item == "train", item != "test", item)):
        if split == "external" and newest.get("test") == newest["external"]:
            continue
        beside = {"external"} if split == "test" else set()
        found = {(row.name, row.scope): row for row in rows[split] if row.split in {split} | beside}
        scopes = tuple(
            sorted({scope for _, scope in found}, key=lambda item: (item != "global", item == "external", item))
        )
        names = sorted({name for name, _ in found}, key=lambda item: (item != "auroc", label(item)))
        lines = tuple((name, tuple(found.get((name, scope)) for scope in scopes)) for name in names)
        tables.append(FigureTable(split, newest[split], scopes, lines))
    return tuple(tables)


def _beside(block: Block, other: Block) -> Block:
    width = max(block.present.size, other.present.size)
    values = np.full((len(block.scopes) + len(other.scopes), width), np.nan)
    values[: len(block.scopes), : block.present.size] = block.values
    values[len(block.scopes) :, : other.present.size] = other.values
    present = np.zeros(width, dtype=bool)
    present[: block.present.size] |= block.present
    present[: other.present.size] |= other.present
    return Block((*block.scopes, *other.scopes), values, present)
