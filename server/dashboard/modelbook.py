"""Every model of every run as lines of a table, and one model with all that is known of it; no HTML here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from popmi_core.errors import RunError
from server.dashboard.catalogue import Catalogue, DatabaseCatalogue, NotFound
from server.dashboard.charts import label
from server.dashboard.lineage import Lineage, trace
from server.dashboard.modelcards import Card, Verdict, parse_card, parse_verdict
from server.dashboard.modelfiles import Kind, ModelFile, Shelf, read_card
from server.dashboard.remembered import Remembered
from server.store import MetricRow, RunReader, RunSummary
from server.store.looks import (
    RoundModel,
    best_validation,
    named_figures,
    round_figures,
    round_models,
    round_row,
    site_rounds,
)

LINES_A_PAGE = 100
_ORDER = {"val": 0, "test": 1, "external": 2, "train": 3}
REACH = 4
"""How many rounds before and after a model are shown beside it."""


@dataclass(frozen=True)
class KeptModel:
    """What the keeper told of one model: whether its file is there, who pinned it and why; times since 1970 UTC."""

    size: int | None = None
    here: bool | None = None
    onnx: bool = False
    pinned_by: str | None = None
    pinned_at: float | None = None
    pin_note: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether somebody pinned it."""
        return self.pinned_by is not None


Kept = Mapping[tuple[str, int], KeptModel]


@dataclass(frozen=True)
class ModelLine:
    """One model in a table. ``size`` (bytes) is None where nobody knows of a file; figures are macro AUROC."""

    key: str
    run: str
    phantom: bool
    strategy: str
    server_round: int
    rounds_planned: int
    outcome: str
    finished: float
    sha256: str | None
    best: bool
    newest: bool
    kept: KeptModel
    size: int | None
    validation: MetricRow | None
    external: MetricRow | None


@dataclass(frozen=True)
class ModelPage:
    """One run's models, some of them: ``number`` counts all, ``first`` is the place of the first line shown."""

    lines: tuple[ModelLine, ...]
    number: int
    first: int


@dataclass(frozen=True)
class ModelView:
    """One model with all that is known of it; ``card_from`` says where the card was read, empty where there is none."""

    key: str
    run: RunSummary
    line: ModelLine
    lineage: Lineage
    card: Card | None
    card_from: str
    verdict: Verdict | None
    figures: tuple[MetricRow, ...]
    files: Mapping[Kind, ModelFile]
    near: tuple[RoundModel, ...]

    @property
    def external(self) -> bool:
        """Whether this round was tested on images no site trained on."""
        return any(row.scope == "external" for row in self.figures)

    @property
    def table(self) -> RoundTable | None:
        """The round's figures: names down, the global model's splits and the external set across."""
        seen = [row for row in self.figures if row.scope in ("global", "external")]
        if not seen:
            return None
        found = {(row.name, row.split, row.scope): row for row in seen}
        columns = tuple(sorted({(row.split, row.scope) for row in seen}, key=lambda pair: _ORDER.get(pair[0], 9)))
        names = sorted({row.name for row in seen}, key=lambda name: (name != "auroc", label(name)))
        rows = tuple((name, tuple(found.get((name, *column)) for column in columns)) for name in names)
        return RoundTable(columns, rows)


@dataclass(frozen=True)
class RoundTable:
    """One round's figures: ``columns`` are split and scope, a row has a figure or None for each."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[MetricRow | None, ...]], ...]


def folder_of(catalogue: Catalogue, key: str, run: RunSummary) -> str:
    """Return the name of a run's folder: a database knows runs by number, a server's folder has the run's name."""
    return run.name if isinstance(catalogue, DatabaseCatalogue) else key


@dataclass(frozen=True)
class Shelves:
    """Where models are looked for: the runs' records, the files, and what the keeper told, cards by a file's sha256."""

    catalogue: Catalogue
    shelf: Shelf
    kept: Kept
    kept_card: Callable[[str], Mapping[str, Any] | None]
    read: Remembered[Rounds]


@dataclass(frozen=True)
class Rounds:
    """What a run's record says of its models, newest first, and which round is best."""

    models: tuple[RoundModel, ...]
    best: int | None


@dataclass(frozen=True)
class _Opened:
    key: str
    reader: RunReader
    run: RunSummary
    folder: str
    models: tuple[RoundModel, ...]
    best: int | None


def chosen_models(where: Shelves) -> tuple[tuple[ModelLine, ...], tuple[str, ...]]:
    """Return the models worth a look of every run (best, newest, pinned), newest run first, and what is unreadable."""
    found: list[tuple[float, list[ModelLine]]] = []
    troubles = []
    for key in where.catalogue.names():
        try:
            opened = _open(where, key)
            wanted = {opened.best, opened.models[0].server_round if opened.models else None}
            wanted |= {number for (name, number), told in where.kept.items() if name == opened.run.name and told.pinned}
            picked = [item for item in opened.models if item.server_round in wanted]
            found.append((opened.run.created, _lines(where, opened, picked)))
        except RunError as error:
            troubles.append(f"{key}: {error}")
        except NotFound:
            continue
    found.sort(key=lambda pair: -pair[0])
    return tuple(line for _, lines in found for line in lines), tuple(troubles)


def run_models(where: Shelves, key: str, *, first: int = 0, last: int = LINES_A_PAGE) -> ModelPage:
    """Return one run's models, newest first, ``last`` of them from place ``first`` on.

    Raises:
        NotFound: If there is no such run.
        RunError: If its record cannot be read.
    """
    opened = _open(where, key)
    first = max(0, min(first, len(opened.models) - 1))
    lines = _lines(where, opened, opened.models[first : first + last])
    return ModelPage(tuple(lines), len(opened.models), first)


def view_model(where: Shelves, key: str, server_round: int) -> ModelView:
    """Return one model.

    Raises:
        NotFound: If there is no such run, or the round is not finished.
        RunError: If the record cannot be read.
    """
    opened = _open(where, key)
    reader, run = opened.reader, opened.run
    mine = [item for item in opened.models if item.server_round == server_round]
    row = round_row(reader, run.id, server_round) if mine else None
    if row is None:
        raise NotFound(f"{key} round {server_round}")
    (line,) = _lines(where, opened, mine)
    files = where.shelf.files(opened.folder, server_round)
    card, card_from = parse_card(read_card(files["safetensors"].path) if "safetensors" in files else None), "file"
    if card is None and line.sha256 is not None:
        card, card_from = parse_card(where.kept_card(line.sha256)), "keeper"
    return ModelView(
        key=key,
        run=run,
        line=line,
        lineage=trace(row, site_rounds(reader, run.id, server_round=server_round)),
        card=card,
        card_from=card_from if card is not None else "",
        verdict=parse_verdict(row.notes.get("equivariance")) or (card.equivariance if card is not None else None),
        figures=round_figures(reader, run.id, server_round),
        files=files,
        near=tuple(item for item in reversed(opened.models) if abs(item.server_round - server_round) <= REACH),
    )


def _open(where: Shelves, key: str) -> _Opened:
    reader, run_id = where.catalogue.open(key)
    run = reader.run(run_id)
    rounds = where.read.get(key, run, lambda: _rounds(reader, run_id))
    return _Opened(key, reader, run, folder_of(where.catalogue, key, run), rounds.models, rounds.best)


def _rounds(reader: RunReader, run_id: int) -> Rounds:
    best = best_validation(reader, run_id)
    return Rounds(round_models(reader, run_id), None if best is None else best.server_round)


def _lines(where: Shelves, opened: _Opened, models: Sequence[RoundModel]) -> list[ModelLine]:
    run, sizes = opened.run, where.shelf.sizes(opened.folder)
    rounds = [item.server_round for item in models]
    figures = {(row.scope, row.server_round): row for row in named_figures(opened.reader, run.id, "auroc", rounds)}
    newest = opened.models[0].server_round if opened.models else None
    lines = []
    for item in models:
        number = item.server_round
        told = where.kept.get((run.name, number), KeptModel())
        lines.append(
            ModelLine(
                key=opened.key,
                run=run.name,
                phantom=run.phantom,
                strategy=run.strategy,
                server_round=number,
                rounds_planned=run.rounds_planned,
                outcome=item.outcome,
                finished=item.finished,
                sha256=item.sha256,
                best=number == opened.best,
                newest=number == newest,
                kept=told,
                size=sizes.get(number, told.size if told.here else None),
                validation=figures.get(("global", number)),
                external=figures.get(("external", number)),
            )
        )
    return lines
