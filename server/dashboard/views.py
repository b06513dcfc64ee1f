"""Turn records into what a page or a report prints; no HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.dashboard.candidates import CandidateTable, candidate_table
from server.dashboard.charts import Chart, build_charts, label, splits_of
from server.dashboard.formats import split_name
from server.dashboard.health import State, judge
from server.store import EventRow, MatchRow, MetricRow, RoundRow, RunReader, RunSummary, SiteRow

ROUNDS_SHOWN = 40
_SEVERITY = {"ok": 0, "stopped": 1, "late": 2, "unreachable": 3, "failed": 4, "quarantined": 5}
CODES = {"ok": "✓", "stopped": "S", "late": "L", "unreachable": "U", "failed": "F", "quarantined": "Q"}


@dataclass(frozen=True)
class Cell:
    """One site in one round: ``code`` on the page, ``outcome`` and ``reason`` in words."""

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


@dataclass(frozen=True)
class FigureTable:
    """The newest round's figures of one split: names down, scopes across."""

    split: str
    server_round: int
    scopes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MetricRow | None, ...]], ...]

    @property
    def title(self) -> str:
        """The split in whole words."""
        both = self.split == "test" and "external" in self.scopes
        return "test, and the external set" if both else split_name(self.split)


@dataclass(frozen=True)
class MatchTable:
    """The newest matching: layers down, sites across."""

    server_round: int
    sites: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatchRow | None, ...]], ...]


@dataclass(frozen=True)
class RunView:
    """Everything a run's page shows."""

    run: RunSummary
    state: State
    split: str
    splits: tuple[str, ...]
    charts: tuple[Chart, ...]
    figures: tuple[FigureTable, ...]
    rounds: tuple[RoundRow, ...]
    site_names: tuple[str, ...]
    shown: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Cell]]
    faults: tuple[SiteRow, ...]
    costs: tuple[SiteCost, ...]
    match: MatchTable | None
    candidates: CandidateTable | None
    events: tuple[EventRow, ...]
    best: MetricRow | None

    def chart(self, name: str) -> Chart | None:
        """Return a chart by its metric, None when the run has no such figure."""
        return next((item for item in self.charts if item.id == name), None)

    def headline(self, name: str) -> MetricRow | None:
        """Return the newest global figure of the split in view."""
        for table in self.figures:
            if table.split == self.split and "global" in table.scopes:
                place = table.scopes.index("global")
                return next((row[place] for title, row in table.rows if title == name), None)
        return None

    def external(self, name: str) -> MetricRow | None:
        """Return the newest figure on the external test set."""
        for table in self.figures:
            if "external" in table.scopes:
                place = table.scopes.index("external")
                return next((row[place] for title, row in table.rows if title == name), None)
        return None

    @property
    def bytes_moved(self) -> int:
        """Bytes up and down, all sites and rounds."""
        return sum((item.bytes_up or 0) + (item.bytes_down or 0) for item in self.costs)


def view_run(reader: RunReader, run_id: int, *, split: str | None, now: float) -> RunView:
    """Read one run; ``split`` picks the curves (None or unknown: the split with most figures)."""
    run = reader.run(run_id)
    rounds, sites = reader.rounds(run_id), reader.sites(run_id)
    metrics, matches = reader.metrics(run_id), reader.matches(run_id)
    splits = splits_of(metrics) or ("test",)
    chosen = split if split in splits else splits[0]
    names = tuple(sorted({*run.sites, *(row.site for row in sites)}))
    recent = [row for row in sites if row.server_round >= run.rounds_done]
    return RunView(
        run=run,
        state=judge(run, rounds, recent, now),
        split=chosen,
        splits=tuple(sorted(splits, key=lambda item: (item == "train", item != "val", item))),
        charts=build_charts(metrics, sites, chosen),
        figures=_figure_tables(metrics),
        rounds=rounds,
        site_names=names,
        shown=tuple(item.server_round for item in rounds if item.server_round > 0)[-ROUNDS_SHOWN:],
        cells=_cells(sites),
        faults=tuple(row for row in sites if row.outcome != "ok")[::-1],
        costs=tuple(_cost(name, [row for row in sites if row.site == name]) for name in names),
        match=_match_table(matches),
        candidates=candidate_table(reader.candidates(run_id), rounds),
        events=reader.events(run_id, last=100)[::-1],
        best=best_round(metrics),
    )


def view_state(reader: RunReader, run: RunSummary, now: float) -> State:
    """Return a run's state from its newest rounds only, for the list of runs."""
    rounds = reader.rounds(run.id, since=run.rounds_done)
    return judge(run, rounds, reader.sites(run.id, since=run.rounds_done), now)


def best_round(metrics: Sequence[MetricRow]) -> MetricRow | None:
    """Return the best global AUROC on validation images: choosing by test images would flatter the run."""
    rows = [row for row in metrics if (row.scope, row.split, row.name) == ("global", "val", "auroc")]
    return max((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0, default=None)


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


def _figure_tables(metrics: Sequence[MetricRow]) -> tuple[FigureTable, ...]:
    tables = []
    splits = sorted({row.split for row in metrics}, key=lambda item: (item == "train", item != "test", item))
    for split in splits:
        # The external test set stands beside the sites' own test images.
        beside = {"external"} if split == "test" else set()
        if split == "external" and "test" in splits:
            continue
        here = [row for row in metrics if row.split in {split} | beside]
        newest = max(row.server_round for row in here)
        found = {(row.name, row.scope): row for row in here if row.server_round == newest}
        scopes = tuple(
            sorted({scope for _, scope in found}, key=lambda item: (item != "global", item == "external", item))
        )
        names = sorted({name for name, _ in found}, key=lambda item: (item != "auroc", label(item)))
        rows = tuple((name, tuple(found.get((name, scope)) for scope in scopes)) for name in names)
        tables.append(FigureTable(split, newest, scopes, rows))
    return tuple(tables)


def _cells(sites: Sequence[SiteRow]) -> dict[str, dict[int, Cell]]:
    cells: dict[str, dict[int, Cell]] = {}
    for row in sites:
        line = cells.setdefault(row.site, {})
        held = line.get(row.server_round)
        if held is None or _SEVERITY[row.outcome] > _SEVERITY[held.outcome]:
            line[row.server_round] = Cell(CODES[row.outcome], row.outcome, row.reason or "", row.phase)
    return cells


def _cost(site: str, rows: Sequence[SiteRow]) -> SiteCost:
    train = [row for row in rows if row.phase == "train"]

    def total(name: str) -> Any:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        return sum(values) if values else None

    def newest(name: str) -> Any:
        return next((value for row in reversed(train) if (value := getattr(row, name)) is not None), None)

    return SiteCost(
        site=site,
        rounds_ok=sum(row.outcome == "ok" for row in train),
        rounds_all=len(train),
        num_examples=newest("num_examples"),
        seconds=total("seconds"),
        bytes_up=total("bytes_up"),
        bytes_down=total("bytes_down"),
        epsilon=newest("epsilon"),
        train_loss=newest("train_loss"),
    )


def _match_table(matches: Sequence[MatchRow]) -> MatchTable | None:
    if not matches:
        return None
    newest = max(row.server_round for row in matches)
    found = {(row.layer, row.site): row for row in matches if row.server_round == newest}
    sites = tuple(sorted({site for _, site in found}))
    layers = list(dict.fromkeys(layer for layer, _ in found))
    return MatchTable(newest, sites, tuple((name, tuple(found.get((name, site)) for site in sites)) for name in layers))
