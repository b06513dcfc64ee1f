"""One site in one run: its data as it told of it, its curves, and what it did in every round; no HTML here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.dashboard.blocks import Block
from server.dashboard.charts import CURVES, SITE_FIGURES, Chart, charts_of, splits_by, styles_of
from server.dashboard.held import Held
from server.store import DetailRow, RunReader, RunSummary, SiteRow
from server.store.looks import site_rounds

ROWS_SHOWN = 60
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ClassCounts:
    """Images of each class a site has, by split; a count is None where it is hidden, a total None where nobody told.

    ``hidden`` says whether any count is, ``min_cell`` below how many images a count is hidden.
    """

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int | None, ...]], ...]
    totals: tuple[int | None, ...]
    min_cell: int

    @property
    def hidden(self) -> bool:
        """Whether a count is hidden."""
        return any(count is None for _, row in self.rows for count in row)


@dataclass(frozen=True)
class SiteRunView:
    """What a site's page shows of one run; ``rows`` newest first, ``number`` counts all of them."""

    run: RunSummary
    split: str
    splits: tuple[str, ...]
    charts: tuple[Chart, ...]
    counts: ClassCounts | None
    rows: tuple[SiteRow, ...]
    number: int


def view_site(held: Held, reader: RunReader, site: str, *, split: str | None) -> SiteRunView:
    """Read one site of one run; ``split`` picks the curves (None or unknown: the one with most figures).

    Raises:
        RunError: If the record cannot be read.
    """
    run = held.run
    rows = site_rounds(reader, run.id, site=site)
    counts = Counter({key[0]: _number(block, site) for key, block in held.figures.items() if _number(block, site)})
    splits = splits_by(counts) or ("val",)
    chosen = split if split in splits else splits[0]
    return SiteRunView(
        run=run,
        split=chosen,
        splits=tuple(sorted(splits, key=lambda item: (item == "train", item != "val", item))),
        charts=charts_of(_blocks(held, site, chosen), styles_of([site])),
        counts=class_counts(
            reader.details(run.id, kind="classes", scope=site), reader.details(run.id, kind="joined", scope=site)
        ),
        rows=rows[::-1][:ROWS_SHOWN],
        number=len(rows),
    )


def _blocks(held: Held, site: str, split: str) -> dict[str, Block]:
    """Return the site's curves with the global model's beside them, and what its training tells."""
    found = {
        name: _narrowed(held.figures[split, name], ("global", site)) for name in CURVES if (split, name) in held.figures
    }
    if split != "train" and site in held.sites.names:
        place = held.sites.names.index(site)
        for name in SITE_FIGURES:
            values = held.sites.trained[name][place : place + 1]
            found[name] = Block((site,), values, ~np.isnan(values[0]))
    return found


def _narrowed(block: Block, scopes: Sequence[str]) -> Block:
    kept = [scope for scope in scopes if scope in block.scopes]
    values = block.values[[block.scopes.index(scope) for scope in kept]]
    return Block(tuple(kept), values, ~np.isnan(values).all(axis=0))


def _number(block: Block, scope: str) -> int:
    """Return how many figures of a scope are defined."""
    return int((~np.isnan(block.values[block.scopes.index(scope)])).sum()) if scope in block.scopes else 0


def class_counts(told: Sequence[DetailRow], joined: Sequence[DetailRow]) -> ClassCounts | None:
    """Return the table of a site's images; None where it told of none."""
    by_split = {row.split: row.value for row in told}
    if not by_split:
        return None
    splits = tuple(sorted(by_split, key=lambda item: _SPLITS.index(item) if item in _SPLITS else len(_SPLITS)))
    classes = tuple(str(name) for name in next(iter(by_split.values())).get("classes", ()))
    sizes: Mapping[str, Any] = (joined[-1].value.get("split_sizes") or {}) if joined else {}
    rows = []
    for place, name in enumerate(classes):
        rows.append((name, tuple(_count(by_split[split], place) for split in splits)))
    return ClassCounts(
        classes=classes,
        splits=splits,
        rows=tuple(rows),
        totals=tuple(sizes.get(split) for split in splits),
        min_cell=max((int(value.get("min_cell", 0)) for value in by_split.values()), default=0),
    )


def _count(value: Mapping[str, Any], place: int) -> int | None:
    counts = value.get("counts", ())
    found = counts[place] if place < len(counts) else None
    return None if found is None else int(found)
