"""Small pictures as HTML and inline SVG: shades, bars, a reliability diagram, a whole run's attendance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from server.dashboard.attendance import Attendance

SHADES = 8
_SIDE, _PAD = 260, 34


def heat(value: float | None, most: float) -> str:
    """Return the class of a cell's shade, by its share of the largest; the figure stands in the cell as well."""
    if value is None or most <= 0:
        return ""
    return f"heat{min(SHADES, round(SHADES * min(1.0, abs(value) / most)))}" + (" below" if value < 0 else "")


def bar(value: float | None, most: float, limit: float | None = None) -> Markup:
    """Return a bar of ``value``; ``limit`` is marked by a stroke. The figure stands beside it."""
    if value is None or most <= 0:
        return Markup("")
    wide = 100 * max(0.0, min(1.0, value / most))
    over = " over" if limit is not None and value > limit else ""
    mark = "" if limit is None else f'<path class="mark" d="M{100 * min(1.0, limit / most):.1f} 0V10"/>'
    return Markup(
        '<svg class="bar-cell" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="fill{over}" x="0" y="2" width="{wide:.1f}" height="6"/>{mark}</svg>'
    )


def diagram(value: Mapping[str, Any], title: str) -> Markup:
    """Return a reliability diagram: accuracy by confidence with its bounds; a dot is as large as its bin is full."""
    bins = [item for item in value.get("bins", ()) if item.get("accuracy") is not None and item.get("count")]
    most = max((item["count"] for item in bins), default=1)
    parts = [
        f'<svg class="drawn square" viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="{escape(title)}">',
        f'<path class="ideal" d="M{_PAD} {_SIDE - _PAD}L{_SIDE - 8} 8"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(tick, tick)
        parts.append(f'<path class="grid" d="M{_PAD} {y:.1f}H{_SIDE - 8}"/>')
        parts.append(f'<text x="{_PAD - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{_SIDE - _PAD + 16}" text-anchor="middle">{tick:g}</text>')
    points = []
    for item in bins:
        x, y = _place(item["confidence"], item["accuracy"])
        points.append(f"{x:.1f} {y:.1f}")
        if item.get("lower") is not None and item.get("upper") is not None:
            _, low = _place(0.0, item["lower"])
            _, high = _place(0.0, item["upper"])
            ends = f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
            parts.append(f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}{ends}"/>')
        parts.append(f'<circle class="c1" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 4 * (item["count"] / most) ** 0.5:.1f}"/>')
    if points:
        parts.append(f'<path class="line c1" stroke-width="1.5" d="M{"L".join(points)}"/>')
    return Markup("".join([*parts, "</svg>"]))


def ribbon(item: Attendance, last: int, title: str) -> Markup:
    """Return one site's whole attendance as a ribbon: trouble stands out by height as well as by colour."""
    if last < 1:
        return Markup("")
    heights = {"stopped": 4, "late": 6, "unreachable": 8, "failed": 10, "quarantined": 12}
    parts = [
        f'<svg class="ribbon" viewBox="0 0 {last} 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><path class="base" d="M0 11H{last}"/>'
    ]
    for first, end, outcome in item.spells:
        tall = heights.get(outcome, 12)
        parts.append(
            f'<rect class="{outcome}" x="{first - 1}" y="{12 - tall}" width="{end - first + 1}" height="{tall}"/>'
        )
    return Markup("".join([*parts, "</svg>"]))


def _place(confidence: float, accuracy: float) -> tuple[float, float]:
    span = _SIDE - _PAD - 8
    return _PAD + span * confidence, _SIDE - _PAD - span * accuracy


def largest(values: Sequence[Sequence[float | None]]) -> float:
    """Return the largest size in a table of figures; 0 without any."""
    return max((abs(value) for row in values for value in row if value is not None), default=0.0)
