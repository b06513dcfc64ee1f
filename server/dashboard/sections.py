"""A run's page in sections, each rendered once for all viewers and sent again only when it changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from server.dashboard.catalogue import Catalogue
from server.dashboard.charts import Chart, Line
from server.dashboard.held import HeldRuns
from server.dashboard.kept import Kept, Part
from server.dashboard.language import translations
from server.dashboard.rendering import environment
from server.dashboard.views import RunView
from server.dashboard.words import LINES, word

LIVE = ("head", "participation", "record")
"""Sections that change while a round goes on."""
SECTIONS = (
    "head", "curves", "participation", "sites", "figures", "running", "matching", "candidates", "similarity",
    "rotation", "calibration", "classes", "rounds", "record",
)  # fmt: skip
"""Every section, in the order of the page; each has its template."""
DRAWN = ("curves", "running")
"""Sections whose charts fetch their own points: they are sent again for another set of charts only."""


@dataclass(frozen=True)
class Asked:
    """What somebody wants to see of a run: ``key`` is its name in URLs, the rest are choices on its page."""

    key: str
    language: str
    split: str | None = None
    picked: int | None = None
    upto: int | None = None
    scope: str | None = None

    @property
    def query(self) -> dict[str, str]:
        """The choices as a query string's pairs."""
        pairs = {"split": self.split, "round": self.picked, "upto": self.upto, "scope": self.scope}
        return {name: str(value) for name, value in pairs.items() if value is not None}


class RunSections:
    """Sections and curves of the runs of a catalogue, kept for all viewers.

    Args:
        catalogue: Where the runs are.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.held = HeldRuns(catalogue)
        self.kept = Kept()

    def view(self, asked: Asked) -> RunView:
        """Return what a run's page shows; ``NotFound`` for no such run, ``RunError`` for a bad record."""
        held = self.held.get(asked.key)
        reader, _ = self._catalogue.open(asked.key)
        return RunView(
            held,
            reader,
            split=asked.split,
            now=time.time(),
            picked=asked.picked,
            upto=asked.upto,
            scope=asked.scope,
        )

    def parts(self, asked: Asked, view: RunView) -> dict[str, Part]:
        """Return every section of a run's page."""
        return {name: self._part(name, asked, view) for name in SECTIONS}

    def series(self, asked: Asked, view: RunView, epoch: str, since: int) -> Part:
        """Return the points of every curve as JSON, from round ``since`` on where ``epoch`` is still the run's."""
        held = view.held
        first = since if epoch == held.epoch and 0 <= since <= held.done + 1 else 0
        key = ("series", asked.key, asked.language, view.split, held.epoch, held.done, first)
        return self.kept.get(key, lambda: series_text(view, first, asked.language))

    def _part(self, name: str, asked: Asked, view: RunView) -> Part:
        held, state = view.held, view.state
        # A round's own sections change with a finished round, and with the run's end; the others with every word.
        live: Hashable = (held.run.revision, state.word, state.detail) if name in LIVE else (held.done, held.run.status)
        key = (name, asked, view.split, held.epoch, live)

        def make() -> str:
            template = environment(asked.language).get_template(f"_run_{name}.html")
            return template.render(view=view, key=asked.key, asked=asked, language=asked.language)

        shape: Callable[[], str] | None = None
        if name in DRAWN:
            shape = lambda: _shape(asked, view, name)  # noqa: E731
        return self.kept.get(key, make, shape)


def series_text(view: RunView, first: int, language: str) -> str:
    """Return a run's curves as JSON, from round ``first`` on."""
    charts = (*view.charts_since(first), *view.running(first))
    return charts_text(charts, view.held.epoch, first, view.held.done, language)


def charts_text(charts: Sequence[Chart], epoch: str, first: int, done: int, language: str) -> str:
    """Return curves as JSON: what a chart needs to draw, and what its reading says."""
    translate = translations(language).gettext
    reading = environment(language).get_template("_parts.html").module.reading  # type: ignore[attr-defined]

    def line(item: Line) -> dict[str, Any]:
        return {
            "scope": item.scope,
            "label": item.scope if item.kind == "site" else word(item.scope, LINES).speak(translate),
            "kind": item.kind,
            "style": item.style,
            # Five digits are more than a screen shows, and half of what Python would write.
            "values": [None if value is None else float(f"{value:.5g}") for value in item.values],
        }

    told = {
        chart.id: {
            "rounds": chart.rounds,
            "worst": chart.worst,
            "reading": str(reading(chart)).strip(),
            "lines": [line(item) for item in chart.lines],
        }
        for chart in charts
    }
    answer = {"epoch": epoch, "from": first, "done": done, "charts": told}
    return json.dumps(answer, separators=(",", ":"), allow_nan=False)


def changed(parts: dict[str, Part], have: Sequence[str]) -> str:
    """Return the sections that a page does not have yet, each to be put in its place by htmx."""
    known = set(have)
    return "".join(
        f'<div id="part-{name}" class="part" data-part="{item.digest}" hx-swap-oob="true">{item.text}</div>'
        for name, item in parts.items()
        if item.digest not in known
    )


def _shape(asked: Asked, view: RunView, name: str) -> str:
    charts = view.shells if name == "curves" else view.running(view.held.done + 1)
    told = [asked.key, asked.language, view.split, view.splits, name]
    shape = [*told, [[chart.id, [line.scope for line in chart.lines]] for chart in charts]]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]
