"""Runs side by side: curves over each other, what differs in their settings, figures with the best marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from server.dashboard.blocks import Block
from server.dashboard.charts import CURVES, FALLING, FIXED, Chart, charts_of, splits_by
from server.dashboard.held import Held
from server.dashboard.views import best_round, flatten
from server.dashboard.words import N_, Said, said

MOST_RUNS = 8
"""As many as there are colours."""
_NOTHING = "–"


@dataclass(frozen=True)
class Figure:
    """One run's newest figure of all sites together; ``best`` where no other run of the table is better."""

    value: float | None
    server_round: int | None
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """Some runs, told apart by ``labels``; ``split`` and ``metric`` pick the curves (empty metric: all)."""

    keys: tuple[str, ...]
    held: tuple[Held, ...]
    split: str
    splits: tuple[str, ...]
    metric: str

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """How each run is called: by its name, with its key where two have the same."""
        names = [item.run.name for item in self.held]
        return tuple(
            f"{name} ({key})" if names.count(name) > 1 or name in FIXED else name
            for name, key in zip(names, self.keys, strict=True)
        )

    @property
    def epoch(self) -> str:
        """A text that changes when any of the runs has another finished round."""
        return "-".join(f"{item.epoch}.{item.done}" for item in self.held)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The figures of which any of the runs has a curve."""
        known = {name for item in self.held for split, name in item.figures if split == self.split}
        return tuple(name for name in CURVES if name in known)

    def charts(self, *, points: bool = True) -> tuple[Chart, ...]:
        """Return a chart for each figure, a line for each run; ``points`` False: without them."""
        names = (self.metric,) if self.metric in self.metrics else self.metrics
        styles = {label: place for place, label in enumerate(self.labels, start=1)}
        blocks = {name: self._block(name) for name in names}
        since = 0 if points else max((item.done for item in self.held), default=0) + 1
        return tuple(replace(chart, worst=None) for chart in charts_of(blocks, styles, since=since, names=names))

    @cached_property
    def figures(self) -> tuple[tuple[str, tuple[Figure, ...]], ...]:
        """The newest figures of the split, the best of each row marked."""
        rows = []
        for name in self.metrics:
            found = [_newest(item, self.split, name) for item in self.held]
            known = [item.value for item in found if item.value is not None]
            pick = min if name in FALLING else max
            top = pick(known) if len(known) > 1 else None
            rows.append((name, tuple(replace(item, best=top is not None and item.value == top) for item in found)))
        return tuple(rows)

    @cached_property
    def best(self) -> tuple[tuple[int, float] | None, ...]:
        """Each run's best round by validation AUROC."""
        rows = [best_round(item) for item in self.held]
        return tuple(None if row is None or row.value is None else (row.server_round, row.value) for row in rows)

    @cached_property
    def settings(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The settings that differ, a text a run."""
        return _differing([dict(flatten(item.run.config)) | _description(item) for item in self.held])

    @cached_property
    def environments(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What differs in the environments."""
        return _differing([dict(flatten(item.run.environment)) for item in self.held])

    @cached_property
    def warnings(self) -> tuple[Said, ...]:
        """Why the figures may not be compared as they stand."""
        checks: tuple[tuple[Callable[[Held], object], str], ...] = (
            (
                lambda item: item.run.classes,
                N_("The runs have different classes: the same figure means something else in each."),
            ),
            (lambda item: item.run.data_name, N_("The runs were made on different data.")),
            (lambda item: frozenset(item.run.sites), N_("Different sites took part.")),
            (lambda item: item.run.phantom, N_("Some were made with synthetic images, others were not.")),
            (
                lambda item: item.run.seed,
                N_("The runs have different seeds: a part of what differs is chance. Several seeds of each tell more."),
            ),
        )
        found = [said(text) for value, text in checks if len({value(item) for item in self.held}) > 1]
        if any(item.run.status in ("waiting", "running") for item in self.held):
            found.append(said(N_("Some still go on: their figures are those of their newest round.")))
        return tuple(found)

    def _block(self, name: str) -> Block:
        lines = [(label, _global(item, self.split, name)) for label, item in zip(self.labels, self.held, strict=True)]
        width = max((block.present.size for _, block in lines), default=0)
        values = np.full((len(lines), width), np.nan)
        present = np.zeros(width, dtype=bool)
        for place, (_, block) in enumerate(lines):
            values[place, : block.present.size] = block.values[0] if block.scopes else np.nan
            present[: block.present.size] |= block.present
        return Block(tuple(label for label, _ in lines), values, present)


def compare(keys: Sequence[str], held: Sequence[Held], split: str | None, metric: str) -> Comparison:
    """Return runs side by side; an unknown split is that with most figures."""
    counts: dict[str, int] = {}
    for item in held:
        for name, _ in item.figures:
            if name != "external":
                counts[name] = counts.get(name, 0) + 1
    splits = splits_by(counts) or ("val",)
    usual = "val" if "val" in splits else splits[0]
    return Comparison(tuple(keys), tuple(held), split if split in splits else usual, splits, metric)


def _global(held: Held, split: str, name: str) -> Block:
    block = held.figures.get((split, name))
    if block is None or "global" not in block.scopes:
        return Block()
    place = block.scopes.index("global")
    values = block.values[place : place + 1]
    return Block(("global",), values, block.present)


def _newest(held: Held, split: str, name: str) -> Figure:
    block = _global(held, split, name)
    rounds = np.flatnonzero(block.present)
    if not block.scopes or not rounds.size:
        return Figure(None, None)
    last = int(rounds[-1])
    value = float(block.values[0, last])
    return Figure(None if np.isnan(value) else value, last)


def _description(held: Held) -> dict[str, str]:
    run = held.run
    return {
        "strategy": run.strategy,
        "seed": str(run.seed),
        "data": run.data_name,
        "sites": ", ".join(run.sites),
        "classes": ", ".join(run.classes),
        "rounds": str(run.rounds_planned),
    }


def _differing(settings: Sequence[Mapping[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = sorted({name for item in settings for name in item})
    rows = [(name, tuple(item.get(name, _NOTHING) for item in settings)) for name in names]
    return tuple((name, texts) for name, texts in rows if len(set(texts)) > 1)
