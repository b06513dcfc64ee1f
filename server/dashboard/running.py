"""Curves of the rounds themselves: what each site weighed in the average, how long it took, how much was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from server.dashboard.blocks import Block, Floats
from server.dashboard.charts import Chart, charts_of
from server.dashboard.held import PHASES, Held

RUNNING = ("weights", "seconds", "bytes")
_DIRECTIONS = ("bytes_up", "bytes_down")
_STYLES = {name: place for place, name in enumerate((*PHASES, "up", "down"), start=1)}


def running_charts(held: Held, styles: Mapping[str, int], since: int = 0) -> tuple[Chart, ...]:
    """Return those of ``RUNNING`` of which the record tells, from a round on."""
    blocks = {"weights": held.weights, "seconds": held.seconds, "bytes": _bytes(held)}
    charts = charts_of(blocks, {**styles, **_STYLES}, since=since, names=RUNNING)
    return tuple(
        chart
        if chart.id == "weights"
        else replace(chart, worst=None, lines=tuple(replace(line, kind="other") for line in chart.lines))
        for chart in (replace(chart, worst=None) for chart in charts)
    )


def _bytes(held: Held) -> Block:
    rows: list[Floats] = []
    for name in _DIRECTIONS:
        sent = held.sites.sums.get(name, np.empty((2, 0, 0)))[:, :, : held.done + 1]
        nothing = np.isnan(sent).all(axis=(0, 1))
        rows.append(np.where(nothing, np.nan, np.nansum(sent, axis=(0, 1)) / 1e6))
    values = np.stack(rows)
    return Block(("up", "down"), values, ~np.isnan(values).all(axis=0))
