"""The templates and the formats they print with; shared by the pages and the report."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.dashboard import formats
from server.dashboard.charts import Chart, label
from server.dashboard.svg import draw
from server.dashboard.views import flatten


def environment() -> Environment:
    """Return the templates with the house's formats; everything is escaped."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("figure", "bounded", "moment", "minute", "duration", "size", "count", "split_name"):
        found.filters[name] = getattr(formats, name)
    found.filters |= {"label": label, "flatten": flatten, "path": _path, "plot": _plot, "draw": draw}
    return found


def _path(key: str) -> str:
    return quote(key, safe="", errors="surrogateescape")


def _plot(chart: Chart) -> str:
    lines = [{"scope": line.scope, "style": line.style, "values": line.values} for line in chart.lines]
    return json.dumps({"title": chart.title, "rounds": chart.rounds, "worst": chart.worst, "lines": lines})
