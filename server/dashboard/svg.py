"""Draw a chart as inline SVG: for reports, which carry no script."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from server.dashboard.charts import Chart, Line

WIDTH, HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_COLOURS = 8


def draw(chart: Chart, title: str = "", worst: str = "worst") -> Markup:
    """Return the chart with its axes and legend; colours come from the page's style sheet.

    ``title`` is its name for those who do not see it, ``worst`` the word for the worst site, in the page's language.
    """
    low, high = _range([value for line in chart.lines for value in line.values if value is not None])
    parts = [
        f'<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title or chart.title)}">'
    ]
    for tick in _ticks(low, high):
        y = _y(tick, low, high)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for number in _round_ticks(chart.rounds):
        x = _x(number, chart.rounds)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number:g}</text>')
    # The global line last, so that it lies on top.
    for line in sorted(chart.lines, key=lambda item: item.kind == "global"):
        parts.append(_line(line, chart, low, high))
    parts.append("</svg>")
    return Markup("".join(parts)) + _legend(chart, worst)


def _line(line: Line, chart: Chart, low: float, high: float) -> str:
    points = [
        None if value is None else (_x(number, chart.rounds), _y(value, low, high))
        for number, value in zip(chart.rounds, line.values, strict=True)
    ]
    look = _look(line, chart.worst)
    path, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = True
    dots = ""
    if len(chart.rounds) <= 30:
        dots = "".join(
            f'<circle class="{_colour(line)}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in filter(None, points)
        )
    return f'<path {look} d="{"".join(path)}"/>{dots}'


_KEY = '<li><svg viewBox="0 0 22 6" width="22" height="6" aria-hidden="true"><path {} d="M0 3H22"/></svg> {}{}</li>'


def _legend(chart: Chart, worst: str) -> Markup:
    items = [
        Markup(_KEY).format(
            Markup(_look(line, chart.worst)), line.scope, f" ({worst})" if line.scope == chart.worst else ""
        )
        for line in chart.lines
    ]
    return Markup('<ul class="keys">{}</ul>').format(Markup("").join(items))


def _look(line: Line, worst: str | None) -> str:
    """Sites differ by dash as well as by colour; the global line is the thick whole one."""
    dash = _DASHES[2] if line.style < 0 else _DASHES[(line.style - 1) % len(_DASHES)] if line.style else ""
    width = 3 if line.kind == "global" else 2.5 if line.scope == worst else 1.3
    return f'class="line {_colour(line)}" stroke-width="{width}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _colour(line: Line) -> str:
    return "cx" if line.style < 0 else "c0" if line.style == 0 else f"c{(line.style - 1) % _COLOURS + 1}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high) * 0.1, 0.01)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _round_ticks(rounds: Sequence[int]) -> list[int]:
    step = max(1, math.ceil(len(rounds) / 10))
    return list(rounds[::step])


def _x(number: int, rounds: Sequence[int]) -> float:
    span = WIDTH - _LEFT - _RIGHT
    first, last = rounds[0], rounds[-1]
    return _LEFT + (span / 2 if first == last else 8 + (span - 16) * (number - first) / (last - first))


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)
